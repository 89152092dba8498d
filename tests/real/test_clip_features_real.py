"""Features that OpenAI's ViT-B/32 made of real photos, captions and class names."""

import json

import numpy as np
import pytest
import torch
from clipkit.zeroshot.stored_heads import read_head
from shared_data import shared_data
from torch.nn.functional import normalize

from clipkit.metrics import retrieval_metrics


def test_retrieval_on_a_hundred_photos():
    stored = np.load(shared_data("clip_vitb32_real") / "flickr100.npz")
    image, text = (normalize(torch.from_numpy(stored[name]), dim=-1) for name in ("image", "text"))
    assert image.shape == (100, 512)
    found = retrieval_metrics(image, text, torch.arange(500) // 5)
    assert found["text_to_image_R@1"] == pytest.approx(0.832)
    assert found["image_to_text_R@1"] == pytest.approx(0.93)
    assert found["image_to_text_R@5"] == 1.0


@pytest.mark.parametrize(("array", "num_classes"), [("coco", 80), ("lvis", 1203)])
def test_stored_heads(array, num_classes):
    path = shared_data("clip_vitb32_real") / "text_a_cname.npz"
    head = read_head(f"{path}:{array}", embed_dim=512)
    assert head.weights.shape == (num_classes, 512)
    torch.testing.assert_close(head.weights.norm(dim=1), torch.ones(num_classes))
    names = json.loads(path.with_suffix(".json").read_text())[array]
    assert list(head.prompt_set.class_names) == names
    # Against numpy in double precision.
    rows = np.load(path)[array].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(head.weights.numpy(), rows, atol=1e-6)


def test_the_name_of_a_class_finds_the_photos_that_show_it():
    folder = shared_data("clip_vitb32_real")
    head = read_head(f"{folder / 'text_a_cname.npz'}:coco")
    captions = json.loads((folder / "flickr100.json").read_text())["captions"]
    images = normalize(torch.from_numpy(np.load(folder / "flickr100.npz")["image"]), dim=-1)
    mentions = torch.tensor([bool({"dog", "dogs"} & set(text.lower().split())) for text in captions])
    of_dogs = mentions.reshape(100, 5).sum(dim=1) >= 3
    assert of_dogs.sum() == 28
    best = head.scores(images)[:, head.prompt_set.class_names.index("dog")].argsort(descending=True)[:28]
    assert of_dogs[best].all()
