"""Training: labelled tiles to a distilled DeiT student. Installed as `edgelung.train`.

run        `train_run`: from a folder to a finished run
prepare    index, groups, split
stages     the models of a run and their losses
trainer    the loop of one stage
results    metrics, predictions, pictures
"""
