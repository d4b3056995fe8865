"""The files that edgelung writes and reads: run, bundle, predictions, summary."""
