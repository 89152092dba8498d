"""Contrastive objectives: plain functions on feature tensors."""

from __future__ import annotations

from clipkit.losses.contrastive import clip_loss
from clipkit.losses.sigmoid import siglip_loss

__all__ = ["clip_loss", "siglip_loss"]
