"""Export: a training run to a verified bundle. Installed as `edgelung.export`.

build      `export_run`: the steps in order
inputs     read the run; `tiles` decides which tiles calibrate and which judge
proof      the graph reproduces the trained model
calibrate  the quantization plan, from `stats`, `ranges` and `smoothquant`
candidates, evaluate, select   graphs, their verdicts, what is kept
bundle_folder   write everything, once
triton      a model repository for Triton, from a finished bundle
"""
