"""Detectors of transformers: OWLv2 (arXiv:2306.09683), OWL-ViT, Grounding DINO (arXiv:2303.05499)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipkit.regions import boxes
from clipkit.regions.labelling.detectors import FORMS, Detections

_OWL = ("owlv2", "owlvit")
_GROUNDING_DINO = ("grounding-dino", "mm-grounding-dino")


class TransformersDetector:
    """A detector in a folder or on the hub, as `save_pretrained` writes model and processor."""

    def __init__(self, name: str, device: torch.device, image_size: int | None = None) -> None:
        """Load it.

        Args:
            name: a folder, or a repository on the hub.
            device: where it runs.
            image_size: side in pixels at which OWLv2 or OWL-ViT looks, in place of its own.

        Raises:
            OSError: transformers is not installed, or there is no such model.
            ValueError: it is a model of another kind, or one that has its own size.
        """
        try:
            from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor
        except ImportError as error:
            raise OSError(f"--detector {name} needs transformers: pip install 'clipkit[hf]'") from error
        try:
            kind = AutoConfig.from_pretrained(name).model_type
        except (OSError, ValueError) as error:
            reason, *_ = str(error).split("\n")  # the rest is advice on other libraries' options
            raise OSError(
                f"--detector {name} cannot be opened by transformers, expected {FORMS}: {reason}"
            ) from error
        if kind not in (*_OWL, *_GROUNDING_DINO):
            raise ValueError(
                f"--detector {name} is a model of type {kind!r}, expected one of "
                f"{', '.join((*_OWL, *_GROUNDING_DINO))}"
            )
        if image_size is not None and kind not in _OWL:
            raise ValueError(f"--detector-size is for OWLv2 and OWL-ViT, {name} has a size of its own")
        self._is_owl = kind in _OWL
        self._device = device
        self._image_size = image_size
        with _no_bars():
            self._model = AutoModelForZeroShotObjectDetection.from_pretrained(name).to(device).eval()
        self._processor = AutoProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def __call__(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        """See `Detector`."""
        return self._by_owl(image, phrases) if self._is_owl else self._by_grounding_dino(image, phrases)

    def _by_owl(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        options: dict[str, Any] = {}
        if self._image_size is not None:
            options["size"] = {"height": self._image_size, "width": self._image_size}
        inputs = self._processor(
            images=image, text=[list(phrases)], return_tensors="pt", truncation=True, **options
        )
        outputs = self._model(
            **inputs.to(self._device), interpolate_pos_encoding=self._image_size is not None
        )
        # It knows how the picture was padded, and takes the best phrase for each box.
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, threshold=0.0, target_sizes=[(image.height, image.width)]
        )
        fractions = boxes.to_fractions(found["boxes"].float(), "xyxy", (image.height, image.width))
        return _detections(fractions, found["scores"], found["labels"])

    def _by_grounding_dino(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        text, spans = join_phrases(phrases)
        inputs = self._processor(images=image, text=[text], return_tensors="pt", truncation=True)
        outputs = self._model(**inputs.to(self._device))
        encoded = self._processor.tokenizer(text, return_offsets_mapping=True, truncation=True)
        tokens = tokens_of_spans(encoded["offset_mapping"], spans).to(self._device)
        probabilities = outputs.logits[0, :, : tokens.shape[1]].float().sigmoid()
        scores = phrase_scores(probabilities, tokens)
        best = scores.max(dim=1)
        return _detections(
            boxes.to_fractions(outputs.pred_boxes[0].float(), "cxcywh"), best.values, best.indices
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """The command shows a progress of its own, or none."""
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def join_phrases(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """`a cat. a dog.`, as Grounding DINO was trained on, and where each begins and ends."""
    text, spans = "", []
    for phrase in phrases:
        cleaned = " ".join(phrase.lower().replace(".", " ").split())
        start = len(text) + bool(text)
        text += f"{' ' if text else ''}{cleaned}."
        spans.append((start, start + len(cleaned)))
    return text, spans


def tokens_of_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """(phrases, tokens) bool: which tokens belong to which phrase, by their characters."""
    rows = [
        [start <= first and last <= end and first < last for first, last in offsets] for start, end in spans
    ]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(spans), len(offsets))


def phrase_scores(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """The mean probability of a phrase's tokens, as Grounding DINO's own inference by token spans has it.

    Args:
        probabilities: (boxes, tokens).
        tokens: (phrases, tokens) bool.

    Returns:
        (boxes, phrases); 0 for a phrase whose tokens were cut off.
    """
    weights = tokens.to(probabilities.dtype)
    return probabilities @ (weights / weights.sum(dim=1, keepdim=True).clamp(min=1)).T


def _detections(corners: Tensor, scores: Tensor, phrase_index: Tensor) -> Detections:
    return Detections(corners.cpu(), scores.float().cpu(), phrase_index.cpu())
