"""Training: labelled tiles to a distilled DeiT student."""
