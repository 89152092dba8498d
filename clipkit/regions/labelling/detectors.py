"""What finds phrases in pictures: one interface for open-vocabulary detectors, yours, and region heads."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from clipkit.regions.boxes import clean

DetectorKind = Literal["function", "model directory", "transformers folder", "hub repository"]

FORMS = "module:function, the folder of a model, or a repository OWNER/NAME on the hub"
"""What `--detector` takes."""

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class DetectionsError(ValueError):
    """A detector gave something else than its interface has."""


@dataclass(frozen=True)
class Detections:
    """Boxes in one picture, each with the phrase that fits it best."""

    boxes: Tensor
    """(K, 4) fp32, xyxy fractions of the picture, perhaps beyond its edges."""
    scores: Tensor
    """(K,) fp32, higher is surer."""
    phrase_index: Tensor
    """(K,) int64, which of the phrases."""


class Detector(Protocol):
    """Finds phrases in a picture."""

    def __call__(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        """Boxes of an RGB picture for at least one phrase, of any score."""


def open_detector(name: str, *, device: torch.device, image_size: int | None = None) -> Detector:
    """The detector that a name means.

    Args:
        name: `module:function` (see `CallableDetector`), a model directory with a region head that grounds,
            or an OWLv2, OWL-ViT or Grounding DINO model of transformers: a folder or a repository on the hub.
        device: where it runs; yours decides for itself.
        image_size: side in pixels at which OWLv2 or OWL-ViT looks, in place of its own.

    Raises:
        OSError: transformers is not installed, or there is no such model.
        ValueError: nothing of these, or a model that finds no phrases.
    """
    kind = detector_kind(name)
    if kind == "function":
        _refuse_size(image_size, name)
        return CallableDetector(name)
    place = str(Path(name).expanduser())
    if kind == "model directory":
        from clipkit.regions.labelling.own_head import RegionHeadDetector

        _refuse_size(image_size, name)
        return RegionHeadDetector(place, device)
    from clipkit.regions.labelling.transformers_detector import TransformersDetector

    return TransformersDetector(place, device, image_size)


def detector_kind(name: str) -> DetectorKind:
    """Which of the forms of `--detector` a name has; a folder comes before a name.

    Raises:
        ValueError: none, or a folder without a model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "open_clip_config.json").is_file():
            return "model directory"
        if (folder / "config.json").is_file():
            return "transformers folder"
        raise ValueError(
            f"--detector {name} is neither a model directory, with open_clip_config.json, "
            "nor a model of transformers, with config.json"
        )
    if _CALLABLE.fullmatch(name):
        return "function"
    if _REPOSITORY.fullmatch(name):
        return "hub repository"
    raise ValueError(f"--detector must be {FORMS}, got {name}")


def _refuse_size(image_size: int | None, name: str) -> None:
    if image_size is not None:
        raise ValueError(f"--detector-size is for OWLv2 and OWL-ViT, {name} has a size of its own")


class CallableDetector:
    """A function of yours: `function(image, phrases) -> (boxes, scores, phrase_index)`.

    It takes an RGB picture of Pillow and a list of texts, and gives three arrays or lists: (K, 4) boxes, xyxy
    as fractions of the picture; (K,) scores; (K,) numbers of the phrases, from 0.
    """

    def __init__(self, name: str) -> None:
        """Import it, from the current folder too.

        Raises:
            ValueError: there is no such module or function.
        """
        self._name = name
        self._function = _import(name)

    def __call__(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        """See `Detector`.

        Raises:
            DetectionsError: the function gave something else than it should.
        """
        result = self._function(image, list(phrases))
        try:
            boxes, scores, phrase_index = result
            numbers = torch.as_tensor(phrase_index)
            if not torch.equal(numbers, numbers.round()):
                raise ValueError(f"numbers of phrases are whole, got {numbers.tolist()}")
            found = Detections(
                torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4).cpu(),
                torch.as_tensor(scores, dtype=torch.float32).cpu(),
                numbers.to(torch.int64).cpu(),
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise DetectionsError(
                f"{self._name} must return boxes (K, 4), scores (K,) and phrase_index (K,): {error}"
            ) from None
        num_boxes, index = len(found.boxes), found.phrase_index
        if not found.scores.isfinite().all():
            raise DetectionsError(f"{self._name} must return finite scores, got {found.scores.tolist()}")
        if found.scores.shape != (num_boxes,) or index.shape != (num_boxes,):
            raise DetectionsError(
                f"{self._name} must return as many scores and phrase numbers as boxes, got "
                f"{list(found.scores.shape)} and {list(index.shape)} for {num_boxes} boxes"
            )
        if num_boxes and not (int(index.min()) >= 0 and int(index.max()) < len(phrases)):
            raise DetectionsError(
                f"{self._name} must return numbers of the {len(phrases)} phrases, got "
                f"{int(index.min())} to {int(index.max())}"
            )
        try:
            clean(found.boxes)
        except ValueError as error:
            raise DetectionsError(
                f"{self._name} must return xyxy fractions of the picture: {error}"
            ) from None
        return found


def see_current_folder() -> None:
    """Let modules of the current folder be imported, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _import(name: str) -> Callable[[Image.Image, list[str]], Any]:
    module_name, _, attribute = name.partition(":")
    see_current_folder()
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--detector {name} cannot be imported: {error}") from None
    except Exception as error:  # the module is anybody's
        raise ValueError(f"--detector {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"--detector {name} must be a function, got a {type(found).__name__}")
    return found  # type: ignore[no-any-return]
