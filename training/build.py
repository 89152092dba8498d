"""From a configuration to the objects of a run: model, optimiser, wrappers."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import torch

import clipkit
from clipkit import distributed
from clipkit.losses.kernels import choose_kernel
from clipkit.model import DualEncoder
from clipkit.regions.heads import build_region_head

from . import optim
from .config import TrainConfig
from .objective import build_objective
from .parallel import parallelize
from .region_objective import RegionObjective
from .regions_config import RegionsConfig
from .step import Trainer

logger = logging.getLogger(__name__)

SIGLIP_LOGIT_SCALE = math.log(10)
SIGLIP_LOGIT_BIAS = -10.0
"""Initial values of SigLIP, arXiv:2303.15343, section 3.1; the logit scale is stored as a log."""


def build_model(config: TrainConfig) -> DualEncoder:
    """The model of a run: random weights, or those of its source, with the asked towers locked.

    Raises:
        ValueError: the source cannot be loaded, or the objective or the region head needs what it lacks.
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
    if wanted.resize_mode is not None:
        model.preprocess_config = dataclasses.replace(model.preprocess_config, resize_mode=wanted.resize_mode)
    _give_region_head(model, config.trained_regions)
    if wanted.lock_image:
        model.lock_image(unlocked_groups=wanted.lock_image_unlocked_groups)
    if wanted.lock_text:
        model.lock_text(unlocked_groups=wanted.lock_text_unlocked_groups)
    if config.loss.objective == "softmax" and model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)
    if wanted.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def _give_region_head(model: DualEncoder, regions: RegionsConfig | None) -> None:
    """Go on with the region head of the source if it is of the wanted kind, else make one or leave it out."""
    loaded, model.region_head = model.region_head, None
    if regions is None:
        if loaded is not None:
            logger.warning("the %s of the source is left out, since this run trains no regions", loaded.kind)
        return
    if model.config["vision_cfg"].get("patch_dropout"):
        raise ValueError(
            f"regions.head={regions.head} reads all patches of an image: set model.patch_dropout to 0"
        )
    if loaded is None or loaded.kind != regions.head:
        if loaded is not None:
            logger.warning("a new %s takes the place of the %s of the source", regions.head, loaded.kind)
        model.region_head = build_region_head(regions.head, model, regions.settings)
        return
    settings = {**dataclasses.asdict(loaded.config), **regions.settings}
    model.region_head = build_region_head(regions.head, model, settings)
    try:
        model.region_head.load_state_dict(loaded.state_dict())
    except RuntimeError:
        raise ValueError(
            f"regions.settings={regions.settings} do not fit the {loaded.kind} of the source, which has "
            f"{dataclasses.asdict(loaded.config)}"
        ) from None


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
        region_objective=RegionObjective(contrastive=objective) if config.trained_regions else None,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        average=None if decay is None else optim.WeightAverage(model, decay),
    )
