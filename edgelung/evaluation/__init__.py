"""Evaluation: metrics, intervals and the gate."""
