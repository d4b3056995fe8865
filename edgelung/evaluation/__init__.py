"""Evaluation: metrics, intervals, the gate, and the comparison of runs."""
