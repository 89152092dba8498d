"""What methods have in common that leave the text tower alone: classes are means over prompt templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from clipkit.evaluation import class_features
from clipkit.heads.base import Head
from clipkit.prompts.class_texts import ClassTexts, bare_names
from clipkit.prompts.deep import TEMPLATE

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class FrozenClassesConfig:
    """Settings of a method with frozen classes."""

    templates: tuple[str, ...] = (TEMPLATE,)
    """Prompts with `{c}` for the class name; a class is the mean of their features."""

    def __post_init__(self) -> None:
        lacking = [repr(template) for template in self.templates if "{c}" not in template]
        if lacking or not self.templates:
            raise ValueError(
                f"templates need {{c}} where the class name goes, got {lacking[0] if lacking else 'none'}"
            )


class FrozenClasses(Head):
    """A head whose classes are those of the zero-shot classifier; its config is a `FrozenClassesConfig`."""

    changes_text: ClassVar[bool] = False

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`."""
        return bare_names(names)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`; computed once."""
        device = model.logit_scale.device
        if "templates" not in texts.frozen:
            features = class_features(model, texts.names, self.config.templates, device=device)
            texts.frozen["templates"] = features.clone()  # outside inference mode, as autograd wants it
        return texts.frozen["templates"].to(device)
