"""`clipkit regions`: images with boxes and phrases, from annotations to shards."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from clipkit.regions.convert_settings import ConvertSettings

app = App(
    name="regions",
    help="Boxes with phrases: from annotations of others to shards.",
    default_parameter=Parameter(negative=()),
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
