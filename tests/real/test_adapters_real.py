"""Tip-Adapter and CLIP-Adapter on a real trained model and real labelled images, 16 of each class."""

import pytest
import torch
from fashion_model import NAMES, images_and_labels, load

from clipkit.adapters.clip_adapter import ClipAdapter, ClipAdapterConfig
from clipkit.adapters.tip_adapter import TipAdapter, TipAdapterConfig
from clipkit.data.class_splits import few_shot
from clipkit.heads.features import LabelledFeatures, unit_features

BARE = {"templates": ("{c}",)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tmp_path_factory.mktemp("fashion")).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def parts(model):
    """Features to train with, to choose settings by, and to test on."""
    images, labels = images_and_labels()
    transform = model.preprocess()
    features = unit_features(model.encode_image(torch.stack([transform(image) for image in images])))
    is_free = torch.ones(len(labels), dtype=torch.bool)
    found = []
    for shots in (16, 4, 0):
        rows = is_free.nonzero()[:, 0]
        rows = rows[few_shot(labels[rows], shots, 1)]
        is_free[rows] = False
        found.append(LabelledFeatures(features[rows], labels[rows]))
    return found


@torch.no_grad()
def accuracy(model, head, part):
    scores = head.logits(model, head.from_frozen(part.image_features), head.class_texts(model, NAMES))
    return float((scores.argmax(dim=1) == part.labels).double().mean())


def trained(model, head, shots, optimizer, num_steps):
    texts = head.class_texts(model, NAMES)
    for _ in range(num_steps):
        optimizer.zero_grad()
        head.loss(model, {"image_features": shots.image_features, "label": shots.labels}, texts).backward()
        optimizer.step()
    return head


def test_cache(model, parts):
    shots, validation, test = parts
    assert [len(part.labels) for part in parts] == [160, 40, 700]
    head = TipAdapter(model, TipAdapterConfig(**BARE))
    head.prepare(model, NAMES, None, shots)
    zero_shot = TipAdapter(model, TipAdapterConfig(alpha=0.0, **BARE))
    zero_shot.prepare(model, NAMES, None, shots)
    assert accuracy(model, zero_shot, test) == pytest.approx(0.574, abs=0.01)
    assert accuracy(model, head, test) > 0.8
    before = accuracy(model, head, validation)
    head.tune(model, validation, head.class_texts(model, NAMES))
    assert accuracy(model, head, validation) > before
    assert accuracy(model, head, test) > 0.75


def test_trained_keys(model, parts):
    shots, _, test = parts
    head = TipAdapter(model, TipAdapterConfig(train_keys=True, **BARE))
    head.prepare(model, NAMES, None, shots)
    before = accuracy(model, head, test)
    trained(model, head, shots, torch.optim.AdamW(head.parameters(), lr=1e-3), 20)
    assert accuracy(model, head, test) > before


def test_clip_adapter(model, parts):
    shots, _, test = parts
    torch.manual_seed(1)
    head = ClipAdapter(model, ClipAdapterConfig(**BARE))
    trained(model, head, shots, torch.optim.AdamW(head.parameters(), lr=1e-2), 200)
    assert accuracy(model, head, test) > 0.65
