"""Evidence: metrics and the gate."""
