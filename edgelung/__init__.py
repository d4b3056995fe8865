"""edgelung: lung-histology tiles to a verified low-latency engine. Research use only."""

__version__ = "0.2.0"
RESEARCH_USE_ONLY = "Research use only: not a medical device, not for diagnosis."
