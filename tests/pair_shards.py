"""Small shard sets of coloured tiles with captions, for tests that train."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200), "yellow": (210, 210, 40)}
SHADES = ("dark", "pale", "plain")


def write_pairs(folder: Path, num_samples: int, *, per_shard: int = 16, labels: bool = False) -> str:
    """Write shards to `folder`; returns their location. Sample i is tile i, with two captions."""
    folder.mkdir(parents=True)
    names = list(COLOURS)
    generator = np.random.default_rng(0)
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=per_shard, verbose=0) as shards:
        for index in range(num_samples):
            colour = names[index % len(names)]
            shade = SHADES[index % len(SHADES)]
            noise = generator.integers(-20, 20, (40, 48, 3))
            pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            captions = f"a {shade} {colour} tile number {index}\na {colour} tile"
            sample = {"__key__": f"{index:09d}", "jpg": buffer.getvalue(), "txt": captions.encode()}
            if labels:
                sample["cls"] = str(index % len(names)).encode()
            shards.write(sample)
    if labels:
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "sizes.json").write_text(
        json.dumps({path.name: min(per_shard, num_samples - i * per_shard) for i, path in shard_list(folder)})
    )
    return str(folder)


def shard_list(folder: Path) -> list[tuple[int, Path]]:
    return list(enumerate(sorted(folder.glob("*.tar"))))
