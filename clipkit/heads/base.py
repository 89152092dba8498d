"""What every method of adaptation is: a module beside a frozen dual encoder that classifies with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.heads.features import LabelledFeatures, cosine_logits, unit_features
from clipkit.prompts.class_texts import ClassTexts

if TYPE_CHECKING:
    from clipkit.heads.teacher import Teacher
    from clipkit.model import DualEncoder

Batch = Mapping[str, Tensor]


class Head(nn.Module, ABC):
    """A method's parameters. Kept in fp32; the dual encoder is passed in, frozen, and never a part of it.

    A subclass has a frozen dataclass `Config`, is made from a model and a config, and says by two flags which
    features its parameters reach; the others need to be computed only once.

    A head is made, prepared (`prepare`), moved to the model's device, and only then given to an optimizer.
    One that is read from a file is made from its config and gets its tensors, without `prepare`.
    """

    method: ClassVar[str]
    """Name in recipes, commands and files."""
    Config: ClassVar[type]
    """The settings, JSON-ready fields with defaults."""
    changes_image: ClassVar[bool] = False
    """Whether image features are other than what `from_frozen` makes of the model's own."""
    changes_text: ClassVar[bool] = True
    """Whether the features of classes do."""
    is_transductive: ClassVar[bool] = False
    """Whether training sees unlabelled images of the classes that are tested."""
    is_conditional: ClassVar[bool] = False
    """Whether the features of classes differ from image to image; then `text_features` is refused."""
    needs_teacher: ClassVar[bool] = False
    """Whether `prepare` needs another model to learn from."""
    is_tuned: ClassVar[bool] = False
    """Whether settings are chosen on validation images, by `tune`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def restore(
        cls,
        model: DualEncoder,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> Head:
        """A trained head from what was stored of it; for methods whose shapes depend on data to override.

        Args:
            model: that it was trained beside.
            config: the stored fields of `Config`.
            facts: all that the head's file says.
            tensors: its state dict.

        Raises:
            ValueError: settings that do not exist.
            RuntimeError: the tensors are not those of such a head.
        """
        from clipkit.heads.methods import build_head

        head = build_head(cls.method, model, config)
        head.load_state_dict(dict(tensors), strict=True)
        return head

    def prepare(
        self,
        model: DualEncoder,
        names: Sequence[str],
        teacher: Teacher | None = None,
        shots: LabelledFeatures | None = None,
    ) -> None:
        """Called once before training, before an optimizer sees the parameters.

        Args:
            model: the frozen dual encoder.
            names: all classes that are trained.
            teacher: of methods that need one.
            shots: the images that are trained with, where `changes_image` is False.
        """

    @abstractmethod
    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """The texts of classes as this method has them."""

    def image_features(self, model: DualEncoder, images: Tensor) -> Tensor:
        """(B, 3, H, W) images, as `DualEncoder.encode_image` takes them -> (B, D) fp32, L2-normalised."""
        return self.from_frozen(unit_features(model.encode_image(images)))

    def from_frozen(self, image_features: Tensor) -> Tensor:
        """This method's image features (B, D) of the model's own, both L2-normalised."""
        return image_features

    @abstractmethod
    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """(C, D) fp32, L2-normalised."""

    def logits(self, model: DualEncoder, image_features: Tensor, texts: ClassTexts) -> Tensor:
        """Scores of images for classes, as a softmax takes them.

        Args:
            model: the frozen dual encoder.
            image_features: (B, D), from `image_features`.
            texts: of C classes, from `class_texts`.

        Returns:
            (B, C) fp32.
        """
        return cosine_logits(model, image_features, self.text_features(model, texts))

    def loss(self, model: DualEncoder, batch: Batch, texts: ClassTexts) -> Tensor:
        """Cross-entropy over the classes that are trained, a scalar in nats.

        Args:
            model: the frozen dual encoder.
            batch: `label` (B,) int64 in [0, C), and `image`, or `image_features`, the model's own, where they
                were computed before (possible where `changes_image` is False).
            texts: of the C classes.
        """
        return F.cross_entropy(self.logits(model, self.batch_features(model, batch), texts), batch["label"])

    def batch_features(self, model: DualEncoder, batch: Batch) -> Tensor:
        """Image features of a batch, computed or from those that it brings."""
        known = batch.get("image_features")
        return self.image_features(model, batch["image"]) if known is None else self.from_frozen(known)

    def end_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called after each epoch of training, counted from 1."""

    def finish(self) -> None:
        """Called once, after training."""

    def tune(self, model: DualEncoder, validation: LabelledFeatures, texts: ClassTexts) -> None:
        """Called once after `finish` where `is_tuned` and there are validation images.

        Args:
            model: the frozen dual encoder.
            validation: images that were not trained with.
            texts: of the classes that are trained, which the labels count.
        """

    def training_tensors(self) -> dict[str, Tensor]:
        """What training needs to go on, beside parameters and buffers; nothing that a stored head has."""
        return {}

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `training_tensors` gave."""


def frozen_text_features(model: DualEncoder, texts: ClassTexts) -> Tensor:
    """Features of the texts of classes in the model as it is: (C, D), L2-normalised; computed once."""
    if "plain" not in texts.frozen:
        with torch.inference_mode(False), torch.no_grad():  # training may use them after an evaluation
            texts.frozen["plain"] = texts.encode(model, ())
    return texts.frozen["plain"].to(model.logit_scale.device)
