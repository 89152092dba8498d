"""CoOp: context vectors in place of the words around a class name (arXiv:2109.01134)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from clipkit.heads.base import Head
from clipkit.prompts.class_texts import ClassTexts, class_texts
from clipkit.prompts.context import context_vectors, random_vectors
from clipkit.prompts.deep import check_count
from clipkit.prompts.parts import text_parts

if TYPE_CHECKING:
    from clipkit.heads.features import LabelledFeatures
    from clipkit.heads.teacher import Teacher
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class CoopConfig:
    """Settings of CoOp."""

    num_prompts: int = 16
    """M, context vectors."""
    init: str = ""
    """Words whose embeddings the vectors begin as, M tokens such as `a photo of a`; by default they begin as
    N(0, 0.02^2)."""
    class_position: Literal["end", "middle", "front"] = "end"
    """Where the class name stands among the vectors."""
    class_specific: bool = False
    """Whether each class has vectors of its own, instead of some that all share."""
    class_names: tuple[str, ...] = ()
    """The classes of class-specific vectors; `prepare` sets them."""

    def __post_init__(self) -> None:
        check_count("num_prompts", self.num_prompts)
        if self.class_names and not self.class_specific:
            raise ValueError(
                "class_names are of class-specific vectors: set class_specific, or leave them out"
            )


class Coop(Head):
    """(M, text width) vectors for all classes, or (C, M, text width) with some of its own for each."""

    method: ClassVar[str] = "coop"
    Config: ClassVar[type] = CoopConfig

    def __init__(self, model: DualEncoder, config: CoopConfig) -> None:
        super().__init__(config)
        self.context = self._context(model)

    def prepare(
        self,
        model: DualEncoder,
        names: Sequence[str],
        teacher: Teacher | None = None,
        shots: LabelledFeatures | None = None,
    ) -> None:
        """Make the vectors of each class, if they are class-specific; see `Head`."""
        if self.config.class_specific:
            self.config = dataclasses.replace(self.config, class_names=tuple(names))
            self.context = self._context(model)

    def _context(self, model: DualEncoder) -> nn.Parameter:
        count, num_classes = self.config.num_prompts, len(self.config.class_names)
        width = text_parts(model.model).width
        if num_classes and not self.config.init:
            return random_vectors(num_classes, count, width)
        context = context_vectors(model, self.config.init, count, width)
        return nn.Parameter(context.detach().repeat(num_classes, 1, 1)) if num_classes else context

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`.

        Raises:
            ValueError: the vectors are class-specific and a name is none of their classes.
        """
        is_specific, known = self.config.class_specific, self.config.class_names
        unknown = [name for name in names if is_specific and name not in known]
        if unknown:
            raise ValueError(
                f"these context vectors are class-specific and there are none for {unknown[0]!r}: name "
                "classes that were trained, or train shared vectors"
            )
        return class_texts(
            model,
            names,
            "{c}.",
            self.config.num_prompts,
            insert=True,
            class_position=self.config.class_position,
        )

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        if not self.config.class_specific:
            return texts.encode(model, [self.context])
        rows = [self.config.class_names.index(name) for name in texts.names]
        return texts.encode(model, [self.context[rows]])
