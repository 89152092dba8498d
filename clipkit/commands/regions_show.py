"""`clipkit regions show`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from clipkit.dual_encoder import DualEncoder
    from clipkit.regions.show import LookedAt


def show(
    images: tuple[str, ...],
    /,
    *,
    model: str,
    phrases: str,
    out: Path,
    heat: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Draw pictures with the boxes that a model gives for phrases, and how well each fits.

    A line a phrase is printed: the picture, the box as x0, y0, x1, y1 in pixels, the cosine of the box with
    the phrase, the phrase. Where the model gives no boxes, the point that fits best takes their place.

    Args:
        images: pictures, folders of them and patterns.
        model: a model directory with a region head, or anything else that clipkit.load takes.
        phrases: what to look for, between commas.
        out: an image (.png), or a page (.html).
        heat: show also how well each place fits each phrase, by the tower's own tokens; for this, the model
            needs no region head that grounds.
        as_json: print JSON lines, with boxes as fractions of the picture; with --heat also the point that
            fits the phrase best, and its cosine.
    """
    import clipkit
    from clipkit.data.image_files import find_images
    from clipkit.regions.show import check_out, write_shown

    wanted = [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]
    if not wanted:
        raise ValueError("--phrases must name a phrase or several between commas, got none")
    check_out(out)
    paths = find_images(images)
    looked_at = []
    for one in _look(clipkit.load(model).eval(), paths, wanted, with_heat=heat):
        for line in _json_lines(one) if as_json else _text_lines(one):
            print(line)
        looked_at.append(one)
    if not looked_at:
        raise ValueError(f"none of {len(paths)} pictures can be read")
    write_shown(out, looked_at)
    print(f"{len(looked_at)} pictures in {out}", file=sys.stderr)
    return 1 if len(looked_at) < len(paths) else 0


def _look(
    model: DualEncoder, paths: Sequence[Path], phrases: Sequence[str], *, with_heat: bool
) -> Iterator[LookedAt]:
    """Each picture as it is looked at; those that cannot be read are named on stderr."""
    from clipkit.data.problems import SampleError
    from clipkit.data.tables import read_file
    from clipkit.images import ImageError, decode_image
    from clipkit.regions.answers import why_not_ground
    from clipkit.regions.look import look_for
    from clipkit.regions.show import LookedAt
    from clipkit.windows import eval_window

    with_boxes = not with_heat or why_not_ground(model) is None
    for path in paths:
        try:
            picture = decode_image(read_file(path))
        except (SampleError, ImageError) as error:
            print(f"not read: {path}: {error.reason}", file=sys.stderr)
            continue
        found = look_for(model, picture, phrases, with_boxes=with_boxes, with_heat=with_heat)
        window = eval_window(model.preprocess_config, (picture.height, picture.width))
        yield LookedAt(path=str(path), picture=picture, window=window, found=tuple(found))


def _json_lines(looked_at: LookedAt) -> Iterator[str]:
    from clipkit.regions.look import hottest

    for one in looked_at.found:
        record: dict[str, Any] = {
            "path": looked_at.path,
            "phrase": one.phrase,
            "box": one.box,
            "score": one.score,
        }
        if one.heat is not None:
            record["point"], record["point_score"] = hottest(one.heat, looked_at.window)
        yield json.dumps(record)


def _text_lines(looked_at: LookedAt) -> Iterator[str]:
    from clipkit.regions.look import hottest

    for one in looked_at.found:
        if one.box is not None:
            yield f"{looked_at.path}  [{_in_pixels(looked_at, one.box)}]  {one.score:.3f}  {one.phrase}"
        elif one.heat is not None:
            point, score = hottest(one.heat, looked_at.window)
            yield f"{looked_at.path}  ({_in_pixels(looked_at, point)})  {score:.3f}  {one.phrase}"


def _in_pixels(looked_at: LookedAt, fractions: Sequence[float]) -> str:
    """Of x, y, and so on."""
    sides = itertools.cycle(looked_at.picture.size)
    return ", ".join(f"{fraction * side:.0f}" for fraction, side in zip(fractions, sides, strict=False))
