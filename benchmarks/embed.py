"""`clipkit embed` against the bare image tower: what decoding, writing and bookkeeping cost.

    python benchmarks/embed.py --images DIR_OR_TAR

Photos are resized to 500 x 375 and saved as JPEG. Embedding the files (read, decode, resize, encode, write,
hash) takes turns with the forward pass alone on the same pictures, decoded beforehand, in the same batches,
with the same weights, precision, device and number of threads. What comes before the first file (hashing the
weights for the model id, above all) hardly grows with the number of images and is stated beside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from clipkit.retrieval.embed import embed
from clipkit.retrieval.embed_settings import EmbedSettings
from clipkit.retrieval.store import EmbeddingFolder
from report import write_result

import clipkit
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.devices import autocast_of
from clipkit.dual_encoder import DualEncoder
from clipkit.images import decode_image

SIZE = (500, 375)


def write_photos(location: str, folder: Path, num_images: int) -> None:
    """`num_images` JPEGs of `SIZE`, each photo flipped, cropped or shifted another way when used again."""
    source = open_source("photos", location, SampleKeys(require=()))
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(num_images):
        photo = decode_image(source.read(number % len(source)).image)
        left, top = generator.integers(0, [photo.width // 5 + 1, photo.height // 5 + 1])
        box = (left, top, left + photo.width * 4 // 5, top + photo.height * 4 // 5)
        photo.resize(SIZE, box=tuple(map(float, box))).save(folder / f"{number:06d}.jpg", quality=90)


def decoded(model: DualEncoder, folder: Path, batch_size: int) -> list[torch.Tensor]:
    """Batches of pixels, as `clipkit embed` gives them to the tower."""
    transform = model.preprocess(dtype=torch.uint8)
    paths = sorted(folder.iterdir())
    images = torch.stack([transform(decode_image(path.read_bytes())) for path in paths])
    return list(images.split(batch_size))


@torch.inference_mode()
def tower_seconds(
    model: DualEncoder, batches: Sequence[torch.Tensor], precision: str
) -> tuple[float, torch.Tensor]:
    """Time of the forward passes alone, and the features."""
    device = model.logit_scale.device
    began = time.perf_counter()
    features = []
    for batch in batches:
        with autocast_of(precision, device):
            features.append(model.encode_image(batch.to(device)))
    result = torch.cat(features).float().cpu()
    return time.perf_counter() - began, result


def embed_seconds(
    model: DualEncoder, folder: Path, out: Path, settings: EmbedSettings, num_workers: int
) -> tuple[float, dict[str, float]]:
    """Time of set-up (without loading the model), and what the run says of itself."""
    began = time.perf_counter()
    report = embed(str(folder), model, out, settings, num_workers=num_workers)
    assert report is not None
    return time.perf_counter() - began - report.rates["seconds"], report.rates


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def rate_of(seconds: Sequence[float], num_images: int) -> str:
    """Images per second at the median."""
    return f"{num_images / statistics.median(seconds):.1f}"


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", required=True, help="folder or tars of photos")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="ViT-B-32", help="an architecture; its weights are random")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        body = measure(Path(temporary), options)
    write_result("embed", "`clipkit embed` against the bare tower", body, command=sys.argv)


def measure(root: Path, options: argparse.Namespace) -> str:
    """Both in turn, as the body of the result file."""
    torch.manual_seed(0)
    model = clipkit.create(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    folder = root / "photos"
    write_photos(options.images, folder, options.num_images)
    batches = decoded(model, folder, options.batch_size)
    settings = EmbedSettings(
        embed="image",
        batch_size=options.batch_size,
        write_batch_size=max(options.batch_size, options.num_images // 4),
        precision=options.precision,
    )
    tower_seconds(model, batches[:2], options.precision)  # warm up
    towers, set_ups, rates = [], [], []
    for number in range(options.rounds):
        seconds, features = tower_seconds(model, batches, options.precision)
        towers.append(seconds)
        out = root / str(number)
        seconds, found = embed_seconds(model, folder, out, settings, options.num_workers)
        set_ups.append(seconds)
        rates.append(found)
    written = EmbeddingFolder.open(out).image_embeddings
    assert written is not None
    unit = torch.nn.functional.normalize(features, dim=-1).numpy()
    difference = float(np.abs(written.read(0, len(written)) - unit).max())
    runs = [rate["seconds"] for rate in rates]
    ratios = [run / tower for run, tower in zip(runs, towers, strict=True)]
    shares = [
        f"{name} {statistics.median(rate[f'{name}_fraction'] for rate in rates):.1%}"
        for name in ("data", "tower", "writing")
    ]
    num_bytes = statistics.median(path.stat().st_size for path in folder.iterdir())
    return f"""{options.model}, random weights, {options.precision}, batches of {options.batch_size},
{torch.get_num_threads()} threads, {options.num_workers} worker process(es) for `clipkit embed`.
{options.num_images} JPEGs of {SIZE[0]} x {SIZE[1]}, median {num_bytes / 1024:.0f} KiB. Median (and range) of
{options.rounds} rounds, taking turns.

| | images/s | seconds |
| --- | ---: | ---: |
| the tower alone, on decoded images | {rate_of(towers, options.num_images)} | {spread(towers)} |
| `clipkit embed`, from files to files | {rate_of(runs, options.num_images)} | {spread(runs)} |
| **time of embed over time of the tower** | | **{spread(ratios)}** |

Goal: at most 1.10. The main loop of `clipkit embed` was in: {", ".join(shares)}.
Set-up before the first file: {spread(set_ups)} s. Largest difference of an embedding (fp16 in the files):
{difference:.1e}.
"""


if __name__ == "__main__":
    main()
