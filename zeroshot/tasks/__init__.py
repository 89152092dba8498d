"""The evaluation suite: a small file for each task."""
