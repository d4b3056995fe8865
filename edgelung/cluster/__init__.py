"""A run on the machines of a Ray cluster: `edgelung infer --ray`, `edgelung slide --ray`.

This machine keeps the run: it lists the files, keeps the journal and writes rows and summary as
ever. Only batches go out, to worker processes that read and predict, and their rows come back:

    session ─► ClusterEngines ─► Schedule ──► Pool ──► Worker, one for each node or GPU
               (engines.py)      (schedule.py (pool.py (worker.py)
                                  crew.py      ray_pool.py)
                                  hunt.py)

`ray_join.py` and `ray_pool.py` alone speak to Ray. docs/adr/0007-ray-actors.md says why it is so.
"""
