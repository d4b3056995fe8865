"""Predictions: one row per file, as CSV, JSON Lines or Parquet, and their reader.

path,status,label,confidence,p_<class>…,error
"""

from collections.abc import Sequence


def probability_column(name: str) -> str:
    """Name of the column that holds the probability of a class."""
    return f"p_{name}"


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the probability columns, in the order of the classes."""
    return [probability_column(name) for name in classes]
