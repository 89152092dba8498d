"""Contrastive objectives: plain functions on feature tensors."""
