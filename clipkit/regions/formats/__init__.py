"""Readers of the annotation formats that `clipkit regions convert` turns into shards."""
