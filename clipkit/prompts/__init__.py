"""Prompt learning on frozen open_clip towers: what slots are, and one module a method."""
