"""`clipkit regions`: shards whose images have boxes with phrases, from annotations or by a detector."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from clipkit.regions.convert_settings import ConvertSettings
from clipkit.regions.labelling.settings import LabelSettings

app = App(
    name="regions",
    help="Boxes with phrases: shards from annotations, or labelled by a detector; pictures with boxes.",
    default_parameter=Parameter(negative=()),
)

app.command(
    "clipkit.commands.regions_show:show",
    name="show",
    help="Draw pictures with the boxes that a model gives for phrases, and how well each fits.",
)

AsJson = Annotated[bool, Parameter(name="--json")]


@app.command
def convert(
    source: Path,
    /,
    *,
    out: Path,
    settings: Annotated[ConvertSettings, Parameter(name="*")],
    quiet: bool = False,
    as_json: AsJson = False,
) -> int:
    """Turn annotated boxes (COCO, Visual Genome, Flickr30k Entities, RefCOCO, LVIS) into shards with regions.

    Images are copied as they are, those without boxes too. What cannot be used is left out, and counted in
    the last line and in report.json.

    Args:
        source: the annotations: instances_train2017.json, region_descriptions.json, the folder with
            Annotations and Sentences, refs(unc).p, lvis_v1_train.json.
        out: folder of the shards; it appears when it is complete.
        settings: what is converted.
        quiet: show no progress.
        as_json: print JSON instead of text.
    """
    from clipkit.regions.convert import convert as write

    found, is_new = write(source, out, settings, show=not quiet)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{out}: {found.to_text()}" + ("" if is_new else "; complete already, nothing was written"))
    return 0


@app.command
def label(
    shards: str,
    /,
    *,
    out: Path,
    settings: Annotated[LabelSettings, Parameter(name="*")],
    quiet: bool = False,
    as_json: AsJson = False,
) -> int:
    """Find regions in captioned shards: phrases of the captions, boxes by an open-vocabulary detector.

    Every sample is copied, with its regions in the json member in place of those that were there. A run that
    was killed goes on with the shards that are not done; under torchrun the processes share them. Counts and
    pictures are in report.html.

    Args:
        shards: tar shards with captions: a folder, a brace range, several joined by `::`.
        out: folder of the labelled shards, which keep their names.
        settings: how regions are found.
        quiet: show no progress.
        as_json: print JSON instead of text.
    """
    from clipkit import distributed
    from clipkit.devices import process_group
    from clipkit.regions.labelling.label import PAGE_NAME
    from clipkit.regions.labelling.label import label as write

    with process_group() as device:
        found, num_labelled = write(shards, out, settings, device=device, show=not quiet)
        is_first = distributed.rank() == 0
    if not is_first:
        return 0
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        end = f"see {out / PAGE_NAME}" if num_labelled else "complete already, no shard was labelled"
        print(f"{out}: {found.to_text()}; {end}")
    return 0
