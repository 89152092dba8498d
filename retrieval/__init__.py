"""Retrieval application: embed, index, search and serve a model directory."""
