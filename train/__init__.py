"""Training: labelled tiles to a distilled DeiT student. Installed as `edgelung.train`.

run        `train_run`: from a folder to a finished run
prepare    index, groups, split
stages     the models of a run and their losses
teachers   what teaches the student: models, or soft labels
trainer    the loop of one stage
probing    linear probes on frozen models and on tile features
results    metrics, predictions, pictures
"""
