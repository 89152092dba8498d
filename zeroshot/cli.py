"""`clipkit classify`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from clipkit.data.image_files import ImageFiles

    from .answers import Answer
    from .questions import Found

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
    boxes: Path | None = None
    """Ask about boxes of the pictures instead of whole ones, by the model's region head: a JSON file `{image:
    [[x0, y0, x1, y1], ...]}`, all in fractions of the image or all in pixels, which is told by most of them;
    or COCO's instances. Without paths, the pictures are those of the file."""
    image_weight: float | None = None
    """With descriptions and a model with a query decoder (GRAIN): how much the whole picture counts, 0 to 1.
    The rest is the mean over the regions that queries found, each with the descriptor that fits it best."""
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
        self._check_regions()
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

    def _check_regions(self) -> None:
        """What does not go with answers about parts of pictures."""
        if self.boxes is not None:
            if self.has_head_of_model:
                raise ValueError(f"head {self.head!r} answers about whole pictures: leave out --boxes")
            if self.cards is not None:
                raise ValueError("--cards draws whole pictures: leave it out, or --boxes")
        if self.image_weight is None:
            return
        if not 0 <= self.image_weight <= 1:
            raise ValueError(f"--image-weight must be from 0 to 1, got {self.image_weight}")
        if self.descriptions is None:
            raise ValueError("--image-weight needs --descriptions, with which regions are compared")
        if self.boxes is not None or self.explain or self.cards is not None:
            raise ValueError(
                "--image-weight mixes pictures and their regions: leave out --boxes, --explain and --cards"
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
    from clipkit.console import progress

    from .classify_setup import build_question, open_files, read_prompts
    from .questions import Asking

    prompt_set = read_prompts(options)
    if options.cards is not None:
        options.cards.mkdir(parents=True, exist_ok=True)
    from_file = options.boxes is not None and not paths
    files, boxes = open_files([] if from_file else _places(paths), options)
    question = build_question(prompt_set, boxes, options)
    asking = Asking(
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        top=options.top,
        with_explanations=options.explain or options.cards is not None,
    )
    began = time.perf_counter()
    with progress("pictures", len(files)) as meter:
        found = question.ask(files, asking, meter.advance)
    seconds = time.perf_counter() - began
    for answer in found.answers:
        print(_shown(answer, options))
    _report(files, found, seconds)
    if boxes is not None:
        print(boxes.to_text(), file=sys.stderr)
    if options.cards is not None:
        print(f"{len(found.images.index)} cards in {options.cards}", file=sys.stderr)
    return 1 if found.images.unreadable else 0


def _places(paths: Sequence[str]) -> list[str]:
    """Where pictures are, those from standard input included."""
    places = [path for path in paths if path != "-"]
    if "-" in paths or (not paths and not sys.stdin.isatty()):
        places += [line.strip() for line in sys.stdin if line.strip()]
    if not places:
        raise ValueError("name pictures, folders or patterns, or pipe in paths, one a line")
    return places


def _shown(answer: Answer, options: ClassifyOptions) -> str:
    """What is printed of an answer; its card is written first, if there are cards."""
    from .cards import write_card

    card = {} if options.cards is None else {"card": str(write_card(options.cards, answer))}
    if not options.explain:
        answer = replace(answer, explanations=())
    return json.dumps(answer.to_json() | card) if options.as_json else answer.to_text()


def _report(files: ImageFiles, found: Found, seconds: float) -> None:
    """To standard error: how fast it went, and what could not be read."""
    num_read, num_known = len(found.images.index), found.images.num_from_cache
    print(
        f"{num_read} of {len(files)} pictures in {seconds:.1f} s "
        f"({len(files) / max(seconds, 1e-9):.0f} a second); features of {num_known} were known",
        file=sys.stderr,
    )
    for number, reason in found.images.unreadable.items():
        print(f"not read: {files.paths[number]}: {reason}", file=sys.stderr)
    for note in found.notes:
        print(note, file=sys.stderr)
