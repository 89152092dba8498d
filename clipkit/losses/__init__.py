"""Contrastive objectives: plain functions on feature tensors."""

from __future__ import annotations

from clipkit.losses.contrastive import clip_loss
from clipkit.losses.pairs import Pairs
from clipkit.losses.sigmoid import siglip_loss

__all__ = ["Pairs", "clip_loss", "siglip_loss"]
