"""Regions of images: boxes, heads that answer about a part of a picture, and their training."""
