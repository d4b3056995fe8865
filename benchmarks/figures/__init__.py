"""Tables of figures, from the files in benchmarks/results; `benchmarks/tables.py` writes them."""
