"""Evaluation during a run, on the user's own data and spread over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from clipkit.data.evaluation import EvalSource, build_eval_loader, open_eval_source
from clipkit.evaluation import class_features, encode_set

from .config import TrainConfig
from .step import Trainer, autocast


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluation sets of a run, opened once."""

    retrieval: dict[str, EvalSource]
    zero_shot: dict[str, EvalSource]

    def __bool__(self) -> bool:
        return bool(self.retrieval or self.zero_shot)
