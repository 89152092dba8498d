"""`clipkit classify`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from clipkit.data.image_files import ImageFiles
    from clipkit.dual_encoder import DualEncoder
    from clipkit.feature_cache import FeatureCache

    from .answers import Answer
    from .classifier import Classifier, PromptSet
    from .encoder import EncodedImages, Encoder

    Answers = Callable[[Tensor, list[str]], Iterator[Answer]]

app = App(
    name="classify",
    help="What is in pictures, by the names or by descriptions of classes, and why.",
    default_parameter=Parameter(negative=()),
)


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """The classes, and what is printed."""

    model: str
    """A model directory, or anything else that `clipkit.load` takes."""
    classes: str | None = None
    """Class names between commas."""
    classes_file: Path | None = None
    """A file with a class name a line."""
    head: str | None = None
    """A head of the model directory by its name, for the classes that it was trained on or for those that are
    named. Or, in place of classes, features of them from a file, `.npz`, `.npy` or `.safetensors` (`:ARRAY`
    for one of several), with the names beside it in a `.txt` or `.json`."""
    descriptions: Path | None = None
    """A JSON file `{class: [descriptor, ...]}`; its classes, unless others are named."""
    templates: str | None = None
    """For names: `openai`, `openai-simple`, or a file; for descriptions: one prompt with `{c}` and `{d}`."""
    top: int = 5
    """Classes shown for each picture."""
    explain: bool = False
    """Show how well each prompt of the best two classes fits."""
    cards: Path | None = None
    """Write a PNG of each picture, with a bar for each prompt of its best two classes, into this folder."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """One JSON line a picture instead of text."""
    batch_size: int = 64
    """Pictures encoded at once."""
    num_workers: int = 0
    """Processes that decode."""
    no_cache: bool = False
    """Compute all features anew; else another question to the same pictures costs no forward pass."""

    def __post_init__(self) -> None:
        prompted = (self.classes, self.classes_file, self.descriptions, self.templates)
        if self.has_head_of_model:
            self._check_head()
        elif self.head is not None and prompted != (None,) * 4:
            raise ValueError("--head brings its classes: leave out --classes, --descriptions and --templates")
        if self.classes is not None and self.classes_file is not None:
            raise ValueError("give one of --classes and --classes-file, got both")
        if self.head is None and prompted[:3] == (None,) * 3:
            raise ValueError(
                "give the classes: --classes a,b,c, --classes-file FILE, --descriptions FILE or --head HEAD"
            )
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.cards is not None and self.cards.exists() and not self.cards.is_dir():
            raise ValueError(f"--cards must name a folder, {self.cards} is something else")

    @property
    def has_head_of_model(self) -> bool:
        """Whether `head` is the name of a head in the model directory."""
        from .stored_heads import is_head_file

        return self.head is not None and not is_head_file(self.head)

    def _check_head(self) -> None:
        """A head of the model has texts of its own, and no prompts whose cosines would explain its scores."""
        if self.descriptions is not None or self.templates is not None:
            raise ValueError(
                f"head {self.head!r} has texts of its own: leave out --descriptions and --templates"
            )
        if self.explain or self.cards is not None:
            raise ValueError(
                f"scores of head {self.head!r} are not made of prompts: leave out --explain and --cards"
            )


@app.default
def classify(
    paths: tuple[str, ...] = (),
    *,
    options: Annotated[ClassifyOptions, Parameter(name="*")],
) -> int:
    """Rank classes for each picture.

    Args:
        paths: pictures, folders of them and patterns; `-`, or nothing at all where something is piped in,
            reads paths from standard input, one a line.
        options: classes and output.

    Returns:
        1 where a picture could not be read, else 0.
    """
    import clipkit
    from clipkit.console import progress
    from clipkit.data.image_files import ImageFiles, find_images
    from clipkit.feature_cache import FeatureCache

    prompt_set = None if options.head is not None else _prompt_set(options)
    if options.cards is not None:
        options.cards.mkdir(parents=True, exist_ok=True)
    files = ImageFiles(find_images(_places(paths)))
    model = clipkit.load(options.model)
    cache = None if options.no_cache else FeatureCache.of_model(model.model_id, model.embed_dim)
    if options.has_head_of_model:
        encoder, answer_all = _with_head(model, cache, options)
    else:
        encoder, answer_all = _with_prompts(model, cache, prompt_set, options)
    began = time.perf_counter()
    with progress("pictures", len(files)) as meter:
        images = encoder.images(
            files, batch_size=options.batch_size, num_workers=options.num_workers, progress=meter.advance
        )
    seconds = time.perf_counter() - began
    for answer in answer_all(images.features, [str(files.paths[number]) for number in images.index.tolist()]):
        print(_shown(answer, options))
    _report(files, images, seconds)
    if options.cards is not None:
        print(f"{len(images.index)} cards in {options.cards}", file=sys.stderr)
    return 1 if images.unreadable else 0


def _with_prompts(
    model: DualEncoder, cache: FeatureCache | None, prompt_set: PromptSet | None, options: ClassifyOptions
) -> tuple[Encoder, Answers]:
    """Classes by prompts or stored features."""
    from .answers import answers
    from .encoder import Encoder

    encoder = Encoder(model, cache)
    return encoder, partial(
        answers,
        _classifier(encoder, prompt_set, options),
        logit_scale=float(model.logit_scale.detach().exp()),
        top=options.top,
        with_explanations=options.explain or options.cards is not None,
    )


def _with_head(
    model: DualEncoder, cache: FeatureCache | None, options: ClassifyOptions
) -> tuple[Encoder, Answers]:
    """Classes by a head of the model directory."""
    from .answers import ranked
    from .head_encoder import HeadEncoder, head_logits

    assert options.head is not None
    adapted = model.with_head(options.head)
    names = _class_names(options) or adapted.class_names

    def answer_all(features: Tensor, paths: list[str]) -> Iterator[Answer]:
        logits = head_logits(model, adapted.head, features, names)
        return ranked(names, logits, logits, paths, top=options.top)

    return HeadEncoder(adapted, cache), answer_all


def _classifier(encoder: Encoder, prompt_set: PromptSet | None, options: ClassifyOptions) -> Classifier:
    """From the prompts, or as it is stored."""
    from clipkit.console import progress

    from .classifier import build_classifier
    from .stored_heads import read_head

    if prompt_set is None:
        assert options.head is not None
        return read_head(options.head, embed_dim=encoder.model.embed_dim)
    with progress("prompts", len(prompt_set.prompts)) as meter:
        return build_classifier(encoder, prompt_set, progress=meter.advance)


def _places(paths: Sequence[str]) -> list[str]:
    """Where pictures are, those from standard input included."""
    places = [path for path in paths if path != "-"]
    if "-" in paths or (not paths and not sys.stdin.isatty()):
        places += [line.strip() for line in sys.stdin if line.strip()]
    if not places:
        raise ValueError("name pictures, folders or patterns, or pipe in paths, one a line")
    return places


def _prompt_set(options: ClassifyOptions) -> PromptSet:
    """Prompts of the classes that were asked for."""
    from clipkit.templates import load_templates

    from .classifier import prompts_of_descriptions, prompts_of_names
    from .classnames import checked_class_names
    from .descriptions import DescriptionBank, PromptFormat

    bank = None if options.descriptions is None else DescriptionBank.read(options.descriptions)
    names = _class_names(options)
    if not names:
        assert bank is not None
        names = checked_class_names(bank.names, str(options.descriptions))
    if bank is None:
        return prompts_of_names(names, load_templates(options.templates))
    prompt_format = PromptFormat() if options.templates is None else PromptFormat(options.templates)
    return prompts_of_descriptions(names, bank, prompt_format)


def _class_names(options: ClassifyOptions) -> tuple[str, ...]:
    """The classes that were named, none where they come with something else."""
    from .classnames import parse_class_names, read_class_names

    if options.classes is not None:
        return parse_class_names(options.classes)
    return () if options.classes_file is None else read_class_names(options.classes_file)


def _shown(answer: Answer, options: ClassifyOptions) -> str:
    """What is printed of an answer; its card is written first, if there are cards."""
    from .cards import write_card

    card = {} if options.cards is None else {"card": str(write_card(options.cards, answer))}
    if not options.explain:
        answer = replace(answer, explanations=())
    return json.dumps(answer.to_json() | card) if options.as_json else answer.to_text()


def _report(files: ImageFiles, images: EncodedImages, seconds: float) -> None:
    """To standard error: how fast it went, and what could not be read."""
    num_read, num_known = len(images.index), images.num_from_cache
    print(
        f"{num_read} of {len(files)} pictures in {seconds:.1f} s "
        f"({len(files) / max(seconds, 1e-9):.0f} a second); features of {num_known} were known",
        file=sys.stderr,
    )
    for number, reason in images.unreadable.items():
        print(f"not read: {files.paths[number]}: {reason}", file=sys.stderr)
