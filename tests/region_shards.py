"""Shards with regions, and small models that have learned them, for tests of evaluation and answers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image, ImageDraw
from small_models import small_model

import clipkit
from clipkit.regions.base import RegionBatch
from clipkit.regions.heads import build_region_head

SIDE = 64
COLOURS = ("red", "green", "blue", "yellow")
SETTINGS: dict[str, Mapping[str, Any]] = {
    "query-decoder": {"num_queries": 3, "num_layers": 2, "num_heads": 2, "mlp_width": 32, "dropout": 0.0}
}

Region = dict[str, Any]


def made_regions(num_images: int) -> list[list[Region]]:
    """Two squares of different colours in each image, one in the left half and one in the right."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(num_images):
        sides = (torch.rand(2, generator=generator) * 0.15 + 0.3).tolist()
        tops = (torch.rand(2, generator=generator) * 0.5).tolist()
        colours = (COLOURS[number % 4], COLOURS[(number + 1 + number // 4 % 3) % 4])
        found.append(
            [
                {"box": [x, top, x + side, top + side], "phrase": colour}
                for x, side, top, colour in zip((0.02, 0.52), sides, tops, colours, strict=True)
            ]
        )
    return found


def draw(regions: Sequence[Region], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Each region filled with the colour that its phrase names."""
    image = Image.new("RGB", size, "gray")
    pen = ImageDraw.Draw(image)
    for region in regions:
        x0, y0, x1, y1 = (edge * size[place % 2] for place, edge in enumerate(region["box"]))
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=region["phrase"])
    return image


def write_region_shards(
    folder: Path, regions: Sequence[Any], *, size: tuple[int, int] = (SIDE, SIDE), pictures: Any = None
) -> str:
    """One tar, an image for each list of regions; what cannot be drawn is in the json alone."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=1000, verbose=0) as shards:
        for number, own in enumerate(regions):
            buffer = io.BytesIO()
            (draw(own, size) if pictures is None else pictures[number]).save(buffer, "PNG")
            fields = json.dumps({"regions": own}).encode()
            shards.write({"__key__": f"{number:09d}", "png": buffer.getvalue(), "json": fields})
    (folder / "sizes.json").write_text(json.dumps({"00000.tar": len(regions)}))
    return str(folder)


def random_model(kind: str | None, *, seed: int = 0) -> clipkit.DualEncoder:
    """A small model, with a head of random weights if a kind is named."""
    model = small_model().eval()
    torch.manual_seed(seed)
    if kind is not None:
        model.region_head = build_region_head(kind, model, SETTINGS.get(kind)).eval()
    return model


def trained_model(regions: Sequence[Sequence[Region]]) -> clipkit.DualEncoder:
    """A small model with random towers, whose RoIAlign has learned the colours of these images by heart."""
    model = random_model("roi-align")
    head = model.region_head
    assert head is not None
    images = torch.stack([model.preprocess()(draw(own)) for own in regions])
    with torch.no_grad():
        seen = model.tokens(images)
        texts = model.encode_text(
            model.tokenizer([region["phrase"] for own in regions for region in own]), normalize=True
        )
    batch = RegionBatch(
        boxes=torch.tensor([region["box"] for own in regions for region in own]),
        box_index=torch.arange(len(regions)).repeat_interleave(2),
        phrase_features=texts,
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(60):
        losses = head.losses(head(seen.tokens[0], seen.grid, batch), batch, torch.tensor(20.0))
        optimizer.zero_grad()
        losses["region_text"].backward()
        optimizer.step()
    return model
