"""The evaluation suite: a small file for each task, which takes features and never a model."""
