"""Engines: one protocol, one file a runtime, and the choice between them."""
