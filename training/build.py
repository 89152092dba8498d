"""From a configuration to the objects of a run: model, optimiser, wrappers."""

from __future__ import annotations

import math
from typing import Any

import torch

import clipkit
from clipkit import distributed
from clipkit.losses.kernels import choose_kernel
from clipkit.model import DualEncoder

from . import optim
from .config import TrainConfig
from .objective import build_objective
from .parallel import parallelize
from .step import Trainer

SIGLIP_LOGIT_SCALE = math.log(10)
SIGLIP_LOGIT_BIAS = -10.0
"""Initial values of SigLIP, arXiv:2303.15343, section 3.1; the logit scale is stored as a log."""


def build_model(config: TrainConfig) -> DualEncoder:
    """The model of a run: random weights, or those of its source, with the asked towers locked.

    Raises:
        ValueError: the source cannot be loaded, or the objective needs what it lacks.
    """
    wanted = config.model
    overrides: dict[str, Any] = {
        "image_size": wanted.image_size,
        "context_length": wanted.context_length,
        "patch_dropout": wanted.patch_dropout,
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if wanted.source is not None:
        model = clipkit.load(wanted.source, model_name=wanted.name, **overrides)
    else:
        assert wanted.name is not None
        if config.loss.objective == "sigmoid":
            overrides |= {"init_logit_scale": SIGLIP_LOGIT_SCALE, "init_logit_bias": SIGLIP_LOGIT_BIAS}
        model = clipkit.create(wanted.name, **overrides)
    if config.loss.objective == "sigmoid" and model.logit_bias is None:
        raise ValueError(
            f"loss.objective=sigmoid needs a model with a logit bias, and {wanted.source} has none; "
            "train it with loss.objective=softmax"
        )
    if wanted.lock_image:
        model.lock_image(unlocked_groups=wanted.lock_image_unlocked_groups)
    if wanted.lock_text:
        model.lock_text(unlocked_groups=wanted.lock_text_unlocked_groups)
    if config.loss.objective == "softmax" and model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)
    if wanted.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def build_trainer(config: TrainConfig, model: DualEncoder, device: torch.device, num_steps: int) -> Trainer:
    """Move the model to its device, wrap it for the world, and give it a loss and an optimiser.

    Raises:
        ValueError: the device or the ranks do not allow the loss, or nothing is left to train.
    """
    objective = build_objective(config.loss)
    choose_kernel(config.loss.kernel, device, torch.float32, num_rows=0, num_columns=0)
    model.to(device).train()
    if config.compile:
        model.compile()
    parallel = parallelize(model, config.parallel, device)
    optimizer = optim.make_optimizer(model, config.optim)
    decay = config.optim.ema_decay
    # Weights start alike on every rank; dropout must not.
    torch.manual_seed(config.seed + 1 + distributed.rank())
    return Trainer(
        config=config,
        num_steps=num_steps,
        device=device,
        model=model,
        parallel=parallel,
        objective=objective,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        average=None if decay is None else optim.WeightAverage(model, decay),
    )
