"""What edgelung writes and reads back: run, bundle, predictions, summary. One owner a file."""
