"""`clipkit adapt`."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

app = App(
    name="adapt",
    help="Teach a frozen model classes from a few labelled images of each; the result is a head beside it.",
    default_parameter=Parameter(negative=()),
)


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """What is learned, and how."""

    data: str
    """A folder with a folder of images for each class, perhaps below `train` and `test`; or a published
    `split_zhou_NAME.json`, followed by `::FOLDER` where its images are elsewhere."""
    method: str | None = None
    """maple, ivlp, vpt, promptsrc, coop, cocoop, promptkd, tip-adapter, clip-adapter or lora; default: the
    recipe's, or maple."""
    recipe: str | None = None
    """A published schedule by name, or a YAML file; default: that of the method's name."""
    name: str | None = None
    """Of the head; default: the recipe's name."""
    classes: Literal["all", "base"] = "all"
    """Train all classes, or the first half and test the others as new ones."""
    shots: int | None = None
    """Training images a class, or as many as there are; 0 for all; default: the recipe's, mostly 16."""
    seed: int = 1
    """Of the draw of images and of everything random."""
    set: tuple[str, ...] = ()
    """Settings of the method, KEY=VALUE."""
    epochs: int | None = None
    """Instead of the recipe's."""
    lr: float | None = None
    """Instead of the recipe's."""
    batch_size: int | None = None
    """Instead of the recipe's; over all ranks."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the towers; what is learned stays in fp32."""
    teacher: str | None = None
    """The larger model that promptkd learns from."""
    teacher_head: str | None = None
    """A head of the teacher."""
    merge_into: Path | None = None
    """Of lora: also write a model directory with the head merged into the weights, which open_clip loads."""
    overwrite: bool = False
    """Replace a head, or an unfinished training, of the same name."""
    quiet: bool = False
    """No progress."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print what is stored of the head as JSON."""


@app.default
def adapt(model: Path, *, options: Annotated[AdaptOptions, Parameter(name="*")]) -> int:
    """Train a head and store it as `heads/NAME` of the model directory.

    Stopped by Ctrl-C or killed, the same command goes on and ends with the same head.

    Args:
        model: a model directory.
        options: what is learned, and how.

    Returns:
        75 when it was asked to stop, else 0.
    """
    from clipkit import distributed

    from ..interrupt import EXIT_INTERRUPTED
    from .loop import AdaptInterruptedError, AdaptJob
    from .loop import adapt as run

    recipe, recipe_name = _recipe(options)
    if options.merge_into is not None and recipe.method != "lora":
        raise ValueError(f"--merge-into takes a head of lora, {recipe.method} cannot be merged into weights")
    job = AdaptJob(
        model=model,
        data=options.data,
        name=options.name or Path(recipe_name).stem,
        recipe=recipe,
        recipe_name=recipe_name,
        split=options.classes,
        seed=options.seed,
        precision=options.precision,
        teacher=options.teacher,
        teacher_head=options.teacher_head,
        overwrite=options.overwrite,
        quiet=options.quiet or options.as_json,
    )
    try:
        facts = run(job)
    except AdaptInterruptedError as error:
        print(error, file=sys.stderr)
        return EXIT_INTERRUPTED
    if options.merge_into is not None and distributed.rank() == 0:
        _merge(model, job.name, options.merge_into)
    if distributed.local_rank() == 0:
        print(json.dumps(facts, indent=2) if options.as_json else _shown(facts, job.name))
    return 0


def _recipe(options: AdaptOptions) -> tuple[Any, str]:
    """The recipe with what the flags change, and its name."""
    import yaml

    from clipkit.heads.methods import method_class

    from .recipe import read_recipe

    if options.method is not None:
        method_class(options.method)
    name = options.recipe or options.method or "maple"
    recipe = read_recipe(name)
    if options.method not in (None, recipe.method):
        raise ValueError(f"recipe {name} is one of {recipe.method}, got --method {options.method}")
    settings = dict(recipe.settings)
    for entry in options.set:
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, got {entry!r}")
        settings[key] = yaml.safe_load(value)
    fields = ("shots", "epochs", "lr", "batch_size")
    changes = {field: getattr(options, field) for field in fields if getattr(options, field) is not None}
    return dataclasses.replace(recipe, settings=settings, **changes), name


def _merge(model_dir: Path, name: str, place: Path) -> None:
    """Write a model with the weights that it has with a head of lora."""
    import clipkit
    from clipkit.adapters.lora import merged_state_dict

    model = clipkit.load(model_dir)
    head = model.with_head(name).head
    model.save(place, state_dict=merged_state_dict(model, head), provenance={"merged head": name})


def _shown(facts: dict[str, Any], name: str) -> str:
    training = facts["training"]
    fewest = training["fewest_images_of_a_class"]
    images = f"{training['images']} images"
    if fewest < facts["shots"]:
        images += f" ({fewest}, not {facts['shots']}, of the smallest class)"
    lines = [f"not read: {place}: {reason}" for place, reason in facts["unreadable"].items()]
    lines.append(
        f"head {name}: {facts['method']}, {len(facts['class_names'])} classes, {images}, "
        f"{training['parameters']:,} parameters, {training['seconds']:.1f} s"
    )
    for part, found in facts["accuracy"].items():
        lines.append(
            f"accuracy, {part}: zero-shot {100 * found['before']:.1f} %, "
            f"with the head {100 * found['after']:.1f} %"
        )
    return "\n".join(lines)
