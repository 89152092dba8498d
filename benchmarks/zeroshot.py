"""Zero-shot classification against CLIP_benchmark: building the classifier, and a second question.

    python benchmarks/zeroshot.py --images DIR --class-names names.json:imagenet1k

ViT-B-32 with random weights, the same ones for both, fp32 on the CPU. CLIP_benchmark runs with `--no_amp`,
its fastest setting on a CPU without bf16 instructions; where there are such, its default is measured as well.
The two take turns on the same classes; what takes the peer too long for a whole run is measured on a part,
as stated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clipkit.zeroshot.classifier import build_classifier, prompts_of_names
from clipkit.zeroshot.encoder import Encoder
from report import write_result
from safetensors.torch import save_file

import clipkit
from clipkit import binary_rankings, classification_metrics, metrics
from clipkit.data.image_files import ImageFiles, find_images
from clipkit.devices import has_bf16_instructions
from clipkit.feature_cache import FeatureCache
from clipkit.templates import load_templates

MODEL = "ViT-B-32"
PEER = ("clip_benchmark==1.6.2", "numpy<2.3")
"""Its accuracy fails under later versions of numpy, which no longer make a float of an array of one."""


class Peer:
    """The process that runs CLIP_benchmark."""

    def __init__(self, python: str, num_threads: int) -> None:
        script = Path(__file__).with_name("zeroshot_peer.py")
        self._process = subprocess.Popen(
            [python, str(script), str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"CLIP_benchmark stopped at {request!r}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def peer_python(folder: Path) -> str:
    """An environment with CLIP_benchmark alone."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    return str(python)


def build_seconds(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str]
) -> tuple[float, torch.Tensor]:
    """Time of a classifier by clipkit, and its weights."""
    began = time.perf_counter()
    classifier = build_classifier(encoder, prompts_of_names(names, templates))
    return time.perf_counter() - began, classifier.weights


def compare_building(
    peer: Peer,
    encoder: Encoder,
    names: Sequence[str],
    templates: Sequence[str],
    rounds: int,
    amp: bool,
    folder: Path,
) -> tuple[list[float], list[float], float]:
    """Seconds a class of both on the same classes in turn, and the largest difference of a weight."""
    ours, theirs, difference = [], [], 0.0
    per_round = len(names) // rounds
    out = str(folder / "weights.npy")
    for number in range(rounds):
        some = list(names[number * per_round : (number + 1) * per_round])
        theirs.append(
            peer.ask("classifier", classes=some, templates=list(templates), out=out, amp=amp) / per_round
        )
        seconds, weights = build_seconds(encoder, some, templates)
        ours.append(seconds / per_round)
        difference = max(difference, float((weights - torch.from_numpy(np.load(out))).abs().max()))
    return ours, theirs, difference


def compare_metrics(peer: Peer, folder: Path) -> dict[str, tuple[float, float]]:
    """Each metric of the same random scores and features by both."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 100
    logits = torch.randn(2000, 100, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 100)
    several = (torch.rand(2000, 100, generator=generator) < 0.05).long()
    images = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator), dim=1)
    owner = torch.arange(200).repeat_interleave(5)
    texts = images[owner] + 0.3 * torch.randn(1000, 64, generator=generator)
    texts = torch.nn.functional.normalize(texts, dim=1)
    arrays = {"logits": logits, "labels": labels, "multi": several}
    arrays |= {"texts": texts, "images": images, "image_of_text": owner}
    paths = {name: str(folder / f"{name}.npy") for name in arrays}
    for name, array in arrays.items():
        np.save(paths[name], array.numpy())
    theirs = peer.ask("metrics", **paths)
    recalls = metrics.retrieval_metrics(images, texts, owner)
    ours = {
        "acc1": metrics.topk_accuracy(logits, labels, 1),
        "acc5": metrics.topk_accuracy(logits, labels, 5),
        "mean_per_class_recall": classification_metrics.mean_per_class_recall(
            (logits.argmax(1) == labels).double(), labels, 100
        ),
        "mean_average_precision": float(binary_rankings.average_precisions(logits, several.bool()).mean()),
        **{f"image_retrieval_recall@{k}": recalls[f"text_to_image_R@{k}"] for k in (1, 5, 10)},
        **{f"text_retrieval_recall@{k}": recalls[f"image_to_text_R@{k}"] for k in (1, 5, 10)},
    }
    return {name: (ours[name], theirs[name]) for name in theirs}


def read_names(source: str) -> list[str]:
    """Class names from a JSON list, or from one of the lists of a JSON object."""
    path, _, name = source.partition(".json:")
    content = json.loads(Path(f"{path}.json" if name else path).read_text())
    names: list[str] = content[name] if name else content
    return names


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument(
        "--class-names", required=True, help="JSON list, or FILE.json:NAME for one of several"
    )
    parser.add_argument("--num-compared", type=int, default=40, help="classes that both build, in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-images", type=int, default=200, help="images that the peer encodes")
    parser.add_argument("--peer-python", help="of an environment with CLIP_benchmark; made anew without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = options.peer_python or peer_python(folder / "peer")
        peer = Peer(python, torch.get_num_threads())
        body = measure(peer, folder, options)
        peer.close()
    write_result("zeroshot", "Zero-shot classification against CLIP_benchmark", body, command=sys.argv)


def measure(peer: Peer, folder: Path, options: argparse.Namespace) -> str:
    """All comparisons, as the body of the result file."""
    rows = "\n".join(
        f"| {name} | {our:.9f} | {their:.9f} | {abs(our - their):.1e} |"
        for name, (our, their) in compare_metrics(peer, folder).items()
    )
    names, templates = read_names(options.class_names), load_templates("openai")
    torch.manual_seed(0)
    model = clipkit.create(MODEL)
    save_file(model.model.state_dict(), str(folder / "weights.safetensors"))
    peer.ask("load", name=MODEL, weights=str(folder / "weights.safetensors"))
    building, seconds_a_class = report_building(peer, model, names, templates, folder, options)
    return f"""{MODEL}, random weights, fp32, {torch.get_num_threads()} threads, {len(templates)} templates.
Median (and range) of {options.rounds} rounds, taking turns.

{building}
{report_second_question(peer, model, names, templates, seconds_a_class, folder, options)}
## Metrics of the same scores and features

| metric | clipkit | CLIP_benchmark | difference |
| --- | ---: | ---: | ---: |
{rows}
"""


def report_building(
    peer: Peer,
    model: clipkit.DualEncoder,
    names: Sequence[str],
    templates: Sequence[str],
    folder: Path,
    options: argparse.Namespace,
) -> tuple[str, float]:
    """The part on classifiers, and the peer's seconds a class."""
    few, encoder = names[: options.num_compared], Encoder(model, None)
    build_seconds(encoder, few[:2], templates)  # warm both up
    peer.ask("classifier", classes=few[:2], templates=list(templates), out=str(folder / "w.npy"), amp=False)
    ours, theirs, difference = compare_building(peer, encoder, few, templates, options.rounds, False, folder)
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    default = ""
    if has_bf16_instructions():
        amp = compare_building(peer, encoder, few, templates, options.rounds, True, folder)[1]
        default = (
            "\nWith its default, autocast (this CPU has bf16 instructions), it takes "
            f"{spread(amp)} s a class: {statistics.median(amp) / statistics.median(ours):.1f} times "
            "clipkit's fp32.\n"
        )
    text = f"""## Building the classifier

| | seconds a class |
| --- | ---: |
| clipkit | {spread(ours)} |
| CLIP_benchmark, `--no_amp` | {spread(theirs)} |
| **ratio** | **{spread(ratios)}** |

Each round builds {len(few) // options.rounds} classes from scratch. Largest difference of a weight:
{difference:.1e}.
{default}"""
    return text, statistics.median(theirs)


def report_second_question(
    peer: Peer,
    model: clipkit.DualEncoder,
    names: Sequence[str],
    templates: Sequence[str],
    seconds_a_class: float,
    folder: Path,
    options: argparse.Namespace,
) -> str:
    """The part on all classes and all images, asked twice."""
    files = ImageFiles(find_images([options.images])[: options.num_images])
    encoder = Encoder(model, FeatureCache(folder / "cache.sqlite", model.embed_dim))
    whole, _ = build_seconds(encoder, names, templates)
    began = time.perf_counter()
    encoder.images(files)
    images = time.perf_counter() - began
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        build_seconds(encoder, names, templates)
        found = encoder.images(files)
        seconds.append(time.perf_counter() - began)
    assert found.num_from_cache == len(found.index)
    paths = [str(path) for path in files.paths[: options.peer_images]]
    seconds_an_image = peer.ask("images", paths=paths, batch_size=64) / len(paths)
    theirs = seconds_a_class * len(names) + seconds_an_image * len(files)
    return f"""All {len(names):,} classes with clipkit, in shared batches: {whole:.0f} s,
{whole / len(names):.3g} s a class, {seconds_a_class * len(names) / whole:.1f} times as fast as the peer's
median.

## A second question to the same images

{len(files):,} images, {len(names):,} classes. clipkit: first time {whole + images:.0f} s, again
{spread(seconds)} s, of which none is a forward pass. CLIP_benchmark computes everything anew:
{theirs:.0f} s, from its seconds a class above and {seconds_an_image:.3g} s an image over {len(paths)} of
them. **Ratio {theirs / statistics.median(seconds):.0f}**.
"""


if __name__ == "__main__":
    main()
