"""`clipkit regions show`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


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
    the phrase, the phrase.

    Args:
        images: pictures, folders of them and patterns.
        model: a model directory with a region head, or anything else that clipkit.load takes.
        phrases: what to look for, between commas.
        out: an image (.png), or a page (.html).
        heat: show also how well each place fits each phrase, by the tower's own tokens; for this, the model
            needs no region head that grounds.
        as_json: print JSON lines, with boxes as fractions of the picture.
    """
    import clipkit
    from clipkit.data.image_files import find_images
    from clipkit.data.problems import SampleError
    from clipkit.data.tables import read_file
    from clipkit.images import ImageError, decode_image
    from clipkit.regions.answers import why_not_ground
    from clipkit.regions.look import look_for
    from clipkit.regions.show import SUFFIXES, LookedAt, write_shown
    from clipkit.windows import eval_window

    wanted = [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]
    if not wanted:
        raise ValueError("--phrases must name a phrase or several between commas, got none")
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out must end with {' or '.join(SUFFIXES)}, got {out}")
    paths = find_images(images)
    loaded = clipkit.load(model).eval()
    with_boxes = not heat or why_not_ground(loaded) is None
    looked_at, num_unreadable = [], 0
    for path in paths:
        try:
            picture = decode_image(read_file(path))
        except (SampleError, ImageError) as error:
            print(f"not read: {path}: {error.reason}", file=sys.stderr)
            num_unreadable += 1
            continue
        found = look_for(loaded, picture, wanted, with_boxes=with_boxes, with_heat=heat)
        window = eval_window(loaded.preprocess_config, (picture.height, picture.width))
        looked_at.append(LookedAt(path=str(path), picture=picture, window=window, found=tuple(found)))
        for one in found:
            if as_json:
                print(
                    json.dumps({"path": str(path), "phrase": one.phrase, "box": one.box, "score": one.score})
                )
            elif one.box is not None:
                sides = (picture.width, picture.height) * 2
                box = ", ".join(f"{edge * side:.0f}" for edge, side in zip(one.box, sides, strict=True))
                print(f"{path}  [{box}]  {one.score:.3f}  {one.phrase}")
    if not looked_at:
        raise ValueError(f"none of {len(paths)} pictures can be read")
    write_shown(out, looked_at)
    print(f"{len(looked_at)} pictures in {out}", file=sys.stderr)
    return 1 if num_unreadable else 0
