"""Accuracy before and after: the model as it is, and with the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.class_splits import ClassSplits, LabelledFiles, base_classes, new_classes
from clipkit.dual_encoder import DualEncoder
from clipkit.heads.base import Head, frozen_text_features
from clipkit.prompts.class_texts import ClassTexts, class_texts
from clipkit.prompts.deep import TEMPLATE

from .pictures import image_features


class ZeroShot(Head):
    """The model as it is, with the text that the methods begin with."""

    method: ClassVar[str] = "zero-shot"
    changes_text: ClassVar[bool] = False

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`."""
        return class_texts(model, names, TEMPLATE, 0)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        return frozen_text_features(model, texts)


@torch.no_grad()
def accuracy(model: DualEncoder, head: Head, files: LabelledFiles, precision: torch.autocast) -> float:
    """Share of the readable images that are named rightly among the classes of `files`."""
    head.eval()
    features, labels, _ = image_features(model, head, files, precision)
    texts = head.class_texts(model, files.classnames or ())
    with precision:
        found = head.logits(model, features, texts).argmax(dim=1)
    return (found == labels).double().mean().item()


def before_and_after(
    model: DualEncoder, head: Head, splits: ClassSplits, split: str, precision: torch.autocast
) -> dict[str, dict[str, float]]:
    """Accuracies on the test images by part: `test`, or `base` and `new`, each among its own classes.

    `before` is that of the model without a head.
    """
    if split == "all":
        parts = {"test": splits.test}
    else:
        parts = {"base": splits.test.of_classes(base_classes(splits.names))}
        if len(new_classes(splits.names)) > 1 and not needs_trained_classes(head):
            parts["new"] = splits.test.of_classes(new_classes(splits.names))
    return {
        name: {
            "before": accuracy(model, ZeroShot(None), files, precision),
            "after": accuracy(model, head, files, precision),
        }
        for name, files in parts.items()
    }


def needs_trained_classes(head: Head) -> bool:
    """Whether a head knows no classes but those that it was trained with."""
    return bool(getattr(head.config, "class_names", ()))
