"""Captioned images on disk: tar shards, tables and folders, read by index."""
