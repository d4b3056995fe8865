"""Inference: from files to one row each."""
