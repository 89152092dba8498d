"""What the demo measures on its model, and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import clipkit
from clipkit import metrics, page
from clipkit.charts import line_chart
from clipkit.commands import demo_regions, demo_search, demo_tasks
from clipkit.commands.demo import DemoFolder
from clipkit.data.evaluation import EvalSource, build_eval_loader, open_eval_source
from clipkit.data.samples import SampleKeys, Source
from clipkit.evaluation import EncodedSet, class_features, encode_set
from clipkit.images import decode_image
from clipkit.model import DualEncoder
from clipkit.scene_objects import COLOURS, SHAPES, UNSEEN_CLASSES

CPU = torch.device("cpu")
NUM_QUERIES, NUM_HITS = 8, 6


@dataclass(frozen=True, kw_only=True)
class Query:
    """A caption and the scenes that the model puts first for it."""

    text: str
    hits: list[page.Hit]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that the report shows of the model."""

    num_parameters: int
    num_scenes: int
    retrieval: dict[str, float]
    recall_by_detail: dict[str, float]
    """Text-to-image R@1 by how much of the scene the caption says."""
    tasks: demo_tasks.TaskResults
    predictions: Tensor
    labels: Tensor
    classnames: tuple[str, ...]
    unseen: Tensor
    """(C,) bool, classes that no training scene shows."""
    queries: list[Query]

    def accuracy(self, *, unseen: bool | None = None) -> float:
        """Zero-shot top-1 over images of all, of the unseen, or of the trained classes."""
        chosen = torch.ones_like(self.labels, dtype=torch.bool)
        if unseen is not None:
            chosen = self.unseen[self.labels] == unseen
        return float((self.predictions == self.labels)[chosen].double().mean())

    def headline(self) -> dict[str, str]:
        """The figures to print."""
        num_classes = len(self.classnames)
        return {
            f"zero-shot top-1 over {num_classes} colour-shape classes": f"{self.accuracy():.1%}",
            "... on trained combinations": f"{self.accuracy(unseen=False):.1%}",
            "... on combinations never trained": f"{self.accuracy(unseen=True):.1%}",
            f"text-to-image R@1 over {self.num_scenes:,} held-out scenes": (
                f"{self.retrieval['text_to_image_R@1']:.1%}"
            ),
            f"image-to-text R@1 over {self.num_scenes:,} held-out scenes": (
                f"{self.retrieval['image_to_text_R@1']:.1%}"
            ),
            **demo_tasks.figures(self.tasks),
            **demo_regions.figures(self.tasks),
        }


def evaluate(folder: DemoFolder) -> Results:
    """Measure the demo's model on the held-out scenes, and read what `clipkit evaluate` has found of it."""
    model = clipkit.load(folder.model).eval()
    scenes = folder.scenes
    keys = SampleKeys(fields=True)
    val = open_eval_source("val", scenes / "val", "retrieval", keys)
    objects = open_eval_source("objects", scenes / "objects" / "test", "zero_shot")
    encoded = _encode(model, val, with_text=True)
    images = _encode(model, objects, with_text=False)
    classes = class_features(model, objects.classnames, objects.templates, device=CPU)
    fields = [val.source.read(index).fields for index in encoded.index.tolist()]
    return Results(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_scenes=encoded.image_features.shape[0],
        retrieval=encoded.retrieval_metrics(),
        recall_by_detail=_recall_by_detail(encoded, fields),
        tasks=demo_tasks.read_task_results(folder.results, model.model_id),
        predictions=(images.image_features @ classes.T).argmax(dim=1),
        labels=images.labels,
        classnames=objects.classnames,
        unseen=torch.tensor([tuple(name.split(" ", 1)) in UNSEEN_CLASSES for name in objects.classnames]),
        queries=list(_queries(encoded, val.source)),
    )


def _encode(model: DualEncoder, source: EvalSource, *, with_text: bool) -> EncodedSet:
    loader = build_eval_loader(source, transform=model.preprocess(dtype=torch.uint8), batch_size=256)
    return encode_set(model, loader, device=CPU, with_text=with_text)


def _recall_by_detail(encoded: EncodedSet, fields: list[Any]) -> dict[str, float]:
    details = [detail for one in fields for detail in one["details"]]
    places = torch.stack([torch.arange(len(details)), encoded.image_of_text], dim=1)
    ranks = metrics.positive_ranks(encoded.text_features, encoded.image_features, places)
    return {
        name: metrics.recall_at_k(ranks[torch.tensor([detail == name for detail in details])], 1)
        for name in dict.fromkeys(details)
    }


def _queries(encoded: EncodedSet, source: Source) -> Iterator[Query]:
    """Captions of scenes spread over the set, of all levels of detail in turn, and what scores highest."""
    num_scenes = encoded.image_features.shape[0]
    for number, scene in enumerate(range(0, num_scenes, max(1, num_scenes // NUM_QUERIES))[:NUM_QUERIES]):
        captions = source.read(int(encoded.index[scene])).captions
        which = number % len(captions)
        text = int(torch.searchsorted(encoded.image_of_text, scene)) + which
        similarity = encoded.image_features @ encoded.text_features[text]
        hits = []
        for row in similarity.topk(min(NUM_HITS, num_scenes)).indices.tolist():
            image = decode_image(source.read(int(encoded.index[row])).image)
            hits.append(page.Hit(image=image, label=f"{similarity[row]:.2f}", is_right=row == scene))
        yield Query(text=captions[which], hits=hits)


def write_report(
    path: Path, results: Results, folder: DemoFolder, *, minutes: float, with_search: bool
) -> None:
    """Write the page."""
    report = page.Page(
        "clipkit demo",
        f"A dual encoder of {results.num_parameters / 1e6:.1f} M parameters that also answers about parts of "
        f"pictures, trained from scratch on generated scenes: {minutes:.1f} minutes, data and evaluation "
        "included.",
    )
    report.figures({name.removeprefix("... "): value for name, value in results.headline().items()})
    _show_training(report, folder.run)
    _show_retrieval(report, results)
    demo_tasks.show_captions(report, results.tasks)
    _show_zero_shot(report, results)
    demo_tasks.show_descriptions(report, results.tasks)
    model = clipkit.load(folder.model).eval()
    demo_regions.show_regions(report, results.tasks, model, folder.scenes / "val")
    if with_search:
        demo_search.show_search(report, folder)
    report.section("The same on your data")
    report.code(
        "clipkit inspect 'shards/{00000..00031}.tar'\n"
        f"clipkit train {folder.path / 'train.yaml'} --data.sources.mine 'shards/{{00000..00031}}.tar' "
        "--output runs/mine\n"
        f"clipkit evaluate runs/mine/model --suite {folder.path / 'suite.yaml'}"
    )
    report.write(path)


def _show_training(report: page.Page, run: Path) -> None:
    lines = [json.loads(line) for line in (run / "runlog.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss_nats" in line]
    evaluations = [line for line in lines if "val/text_to_image_R@1" in line]
    rate = sorted(line["images_per_second"] for line in steps)[len(steps) // 2]
    report.section(
        "Training",
        f"{steps[-1]['samples_seen']:,} image-caption pairs at {rate:,.0f} images per second (median).",
    )
    loss = [(line["samples_seen"], line["loss_nats"]) for line in steps]
    curves = {
        "text to image R@1": [(0, 0.0)]
        + [(line["samples_seen"], 100 * line["val/text_to_image_R@1"]) for line in evaluations],
        "zero-shot top-1": [(0, 0.0)]
        + [(line["samples_seen"], 100 * line["objects/top1"]) for line in evaluations],
    }
    report.charts(
        [
            line_chart("Loss (nats)", {"loss": loss}, x_label="images seen"),
            line_chart("Held-out scenes (%)", curves, x_label="images seen"),
        ]
    )


def _show_retrieval(report: page.Page, results: Results) -> None:
    report.section(
        "Retrieval",
        f"{results.num_scenes:,} held-out scenes, each with captions of three levels of detail; all captions "
        "of a scene are right answers. Short captions can fit several scenes.",
    )
    rows = []
    for direction, name in (("text_to_image", "text to image"), ("image_to_text", "image to text")):
        recalls = [f"{results.retrieval[f'{direction}_R@{k}']:.1%}" for k in (1, 5, 10)]
        rows.append([name, *recalls, f"{results.retrieval[f'{direction}_mean_rank']:.1f}"])
    report.table(["", "R@1", "R@5", "R@10", "mean rank"], rows)
    details = [[name, f"{value:.1%}"] for name, value in results.recall_by_detail.items()]
    report.table(["caption says", "text to image R@1"], details)
    report.section(
        "Queries",
        "The scenes that score highest for a caption; the one it was written for has a green border.",
    )
    for query in results.queries:
        report.row(query.text, query.hits)


def _show_zero_shot(report: page.Page, results: Results) -> None:
    report.section(
        "Zero-shot classification",
        "Held-out scenes with one object, classified among all combinations of colour and shape by the names "
        "of the classes. Accuracy by class; outlined combinations were never in a training scene.",
    )
    is_right = (results.predictions == results.labels).double()
    index = {name: number for number, name in enumerate(results.classnames)}
    grid, marked = [], set()
    for row, colour in enumerate(COLOURS):
        grid.append(
            [float(is_right[results.labels == index[f"{colour} {shape}"]].mean()) for shape in SHAPES]
        )
        marked |= {(row, column) for column, shape in enumerate(SHAPES) if (colour, shape) in UNSEEN_CLASSES}
    report.heat_table(grid, list(COLOURS), list(SHAPES), marked)
    counts = metrics.confusion_matrix(results.predictions, results.labels, len(results.classnames)).double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    picture = Image.fromarray((255 * (1 - shares.sqrt())).to(torch.uint8).numpy())
    side = 8 * len(results.classnames)
    report.picture(
        picture.resize((side, side), Image.Resampling.NEAREST),
        "Confusion: a row for each true class, a column for each predicted one, colours in blocks of eight "
        "shapes; darker is more often.",
    )
