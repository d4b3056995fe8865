"""Inference: from files to one row each.

source (listing) ─► pipeline ─► record ─► sinks (journal, output) ─► summary

`session` connects them, `watch` repeats them.
"""
