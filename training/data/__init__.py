"""Training batches from sources of samples."""
