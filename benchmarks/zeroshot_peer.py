"""What `benchmarks/zeroshot.py` asks of CLIP_benchmark, run in an environment of its own.

Reads one JSON request a line and answers each with one JSON line. Arrays travel as `.npy` files.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification as classification
from clip_benchmark.metrics import zeroshot_retrieval as retrieval
from clip_benchmark.models.open_clip import load_open_clip
from PIL import Image
from sklearn.metrics import balanced_accuracy_score


class Peer:
    """The model as CLIP_benchmark loads it."""

    def __init__(self, name: str, weights: str) -> None:
        model, self.transform, self.tokenizer = load_open_clip(name, weights, device="cpu")
        self.model = model.eval()

    def classifier(self, classes: list[str], templates: list[str], out: str, amp: bool) -> float:
        """Build a classifier with its own function; seconds."""
        began = time.perf_counter()
        weights = classification.zero_shot_classifier(
            self.model, self.tokenizer, classes, templates, "cpu", amp=amp
        )
        seconds = time.perf_counter() - began
        np.save(out, weights.T.float().numpy())
        return seconds

    def images(self, paths: list[str], batch_size: int) -> float:
        """Decode, transform and score images as its loop does, without autocast; seconds."""
        weights = torch.zeros(512, 1000)
        began = time.perf_counter()
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        loader = (
            (
                torch.stack([self.transform(Image.open(path).convert("RGB")) for path in batch]),
                torch.zeros(len(batch)),
            )
            for batch in batches
        )
        classification.run_classification(self.model, weights, loader, "cpu", amp=False)
        return time.perf_counter() - began


def metrics(
    logits: str, labels: str, multi: str, texts: str, images: str, image_of_text: str
) -> dict[str, float]:
    """Its metrics of given scores and features."""
    scores, target = (torch.from_numpy(np.load(path)) for path in (logits, labels))
    several = torch.from_numpy(np.load(multi))
    acc1, acc5 = classification.accuracy(scores, target, topk=(1, 5))
    found = {
        "acc1": acc1,
        "acc5": acc5,
        "mean_per_class_recall": float(balanced_accuracy_score(target, scores.argmax(1))),
        "mean_average_precision": float(classification.average_precision_per_class(scores, several).mean()),
    }
    text, image, owner = (torch.from_numpy(np.load(path)) for path in (texts, images, image_of_text))
    similarity = text @ image.T
    positive = torch.zeros_like(similarity, dtype=torch.bool)
    positive[torch.arange(len(owner)), owner] = True
    for k in (1, 5, 10):
        pairs = {"image": (similarity, positive), "text": (similarity.T, positive.T)}
        for kind, (rows, truth) in pairs.items():
            recall = retrieval.batchify(retrieval.recall_at_k, rows, truth, 64, "cpu", k=k)
            found[f"{kind}_retrieval_recall@{k}"] = float((recall > 0).double().mean())
    return found


def main() -> None:
    """Answer requests until the end of the input."""
    torch.set_num_threads(int(sys.argv[1]))
    peer: Peer | None = None
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        kind = request.pop("request")
        answer: Any
        if kind == "load":
            peer, answer = Peer(**request), None
        elif kind == "metrics":
            answer = metrics(**request)
        else:
            assert peer is not None
            answer = getattr(peer, kind)(**request)
        sys.__stdout__.write(json.dumps(answer) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.stdout = sys.stderr
    main()
