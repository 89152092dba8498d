"""The HTTP service: one process that owns a model and its indexes. Only modules here need FastAPI."""
