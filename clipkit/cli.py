"""The `clipkit` command: a table of sub-commands that are imported when they are called."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from clipkit.version import __version__
from clipkit.whole_numbers import refuse_fractions

COMMANDS = {
    "adapt": (
        "clipkit.training.adapt.cli:app",
        "Teach a frozen model classes from a few labelled images of each: MaPLe, CoOp and others.",
    ),
    "classify": (
        "clipkit.zeroshot.cli:app",
        "What is in pictures, by the names or by descriptions of classes, and why.",
    ),
    "demo": (
        "clipkit.commands.demo:app",
        "Train and evaluate on built-in data; ends with a report page.",
    ),
    "describe": (
        "clipkit.zeroshot.describe_cli:app",
        "Have an LLM write descriptions of classes, for `classify --descriptions`.",
    ),
    "embed": (
        "clipkit.retrieval.embed_cli:app",
        "Images and captions to a folder of embeddings (npy and parquet) for search; resumable.",
    ),
    "evaluate": (
        "clipkit.zeroshot.evaluate_cli:app",
        "How good models are: zero-shot, retrieval, pairs, languages, few-shot; JSON and a report.",
    ),
    "index": (
        "clipkit.retrieval.index_cli:app",
        "Build a search index of embeddings; add, update and remove rows; check and measure it.",
    ),
    "inspect": (
        "clipkit.commands.inspect:app",
        "What is in a data set or a model directory, or the installation.",
    ),
    "regions": (
        "clipkit.commands.regions:app",
        "Boxes with phrases: shards from annotations, or labelled by a detector; pictures with boxes.",
    ),
    "search": (
        "clipkit.retrieval.search_cli:app",
        "Find images in an index by texts and images.",
    ),
    "serve": (
        "clipkit.retrieval.serve_cli:app",
        "An HTTP service and a page that search indexes with texts and pictures.",
    ),
    "train": (
        "clipkit.training.cli:app",
        "Train a dual encoder on captioned images, from scratch or from a model.",
    ),
}

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_KEYBOARD = 130
EXIT_PIPE = 141


def make_app() -> App:
    """The command line, with none of its sub-commands imported."""
    app = App(
        name="clipkit",
        help="CLIP-family models, from captioned images to a model directory that open_clip loads too.",
        version=__version__,
        config=[refuse_fractions],
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for name, (target, summary) in COMMANDS.items():
        app.command(target, name=name, help=summary)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run `clipkit` with the given arguments (default: the process's).

    Returns:
        The exit status: 0, 1 after a failure, 2 after a mistake in the request, or a command's own.
        With CLIPKIT_DEBUG set, errors keep their traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with_traceback = bool(os.environ.get("CLIPKIT_DEBUG"))
    try:
        result = make_app()(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except (CycloptsError, ValueError) as error:
        if with_traceback:
            raise
        return _fail(error, EXIT_USAGE)
    except (OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return EXIT_PIPE
        if with_traceback:
            raise
        return _fail(error, EXIT_FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_KEYBOARD)
    return result if isinstance(result, int) else 0


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more, as behind `| head`; what is left of it is dropped."""
    try:
        print(flush=True)  # a write that failed may have left nothing to flush
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def _fail(reason: object, status: int) -> int:
    line = " ".join(str(reason).split())
    print(f"clipkit: {line}", file=sys.stderr)
    return status
