"""`clipkit classify --head NAME`: heads of the model directory."""

import json
import re

import pytest
import torch
from clipkit.zeroshot.head_encoder import HeadEncoder, head_logits
from PIL import Image
from small_models import small_model

import clipkit
from clipkit.cli import main
from clipkit.data.image_files import ImageFiles
from clipkit.feature_cache import FeatureCache
from clipkit.heads.features import LabelledFeatures, unit_features
from clipkit.heads.files import write_head
from clipkit.heads.methods import build_head

SETTINGS = {
    "maple": {"depth": 1},
    "coop": {"num_prompts": 2},
    "cocoop": {"num_prompts": 2, "init": ""},
    "vpt": {"depth": 1},
    "clip-adapter": {},
    "tip-adapter": {},
}
TRAINED, NEW = ["cat", "dog", "owl"], ["zebra", "dog"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, colour in enumerate(("red", "green", "blue", "grey")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify") / "model"
    model = small_model().requires_grad_(False).eval()
    identity = model.save(folder)
    shots = LabelledFeatures(unit_features(torch.randn(3, 16)), torch.arange(3))
    for method, settings in SETTINGS.items():
        torch.manual_seed(1)
        head = build_head(method, model, settings)
        head.prepare(model, TRAINED, None, shots)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # so that each head is felt
        write_head(folder, method, head, {"class_names": TRAINED}, model_id=identity)
    return folder


@pytest.fixture(scope="module")
def model(model_dir):
    return clipkit.load(model_dir).requires_grad_(False)


@pytest.mark.parametrize("method", SETTINGS)
def test_answers_are_those_of_the_head(method, model, model_dir, photos, capsys):
    paths = sorted(photos.iterdir())
    images = torch.stack([model.preprocess()(Image.open(path)) for path in paths])
    # The second question is answered from known features.
    for names, classes in ((TRAINED, []), (NEW, ["--classes", ",".join(NEW)])):
        assert (
            main(["classify", str(photos), "--model", str(model_dir), "--head", method, "--json", *classes])
            == 0
        )
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["path"] for line in lines] == [str(path) for path in paths]
        for line, logits in zip(lines, model.with_head(method).logits(images, names), strict=True):
            found = {one["class_name"]: one for one in line["predictions"]}
            own = torch.tensor([[found[name][key] for name in names] for key in ("score", "probability")])
            expected = torch.stack([logits, logits.softmax(dim=0)])
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
            assert line["predictions"][0]["class_name"] == names[int(logits.argmax())]


def test_features_of_heads_are_kept_apart(model, photos, tmp_path):
    cache = FeatureCache(tmp_path / "cache.sqlite", 16)
    files = ImageFiles(sorted(photos.iterdir()))
    known, features = {}, {}
    for method in SETTINGS:
        encoded = HeadEncoder(model.with_head(method), cache).images(files)
        known[method], features[method] = encoded.num_from_cache, encoded.features
    # CoOp's are the model's own; CoCoOp and the adapters start from these, the others from none.
    assert known == {"maple": 0, "coop": 0, "cocoop": 4, "vpt": 0, "clip-adapter": 4, "tip-adapter": 4}
    assert torch.equal(features["coop"], features["cocoop"])
    for method in ("maple", "vpt", "clip-adapter"):
        assert not torch.allclose(features[method], features["coop"], atol=1e-3)


def test_no_image_gives_no_row(model):
    head = model.with_head("coop").head
    assert head_logits(model, head, torch.empty(0, 16), NEW).shape == (0, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--head", "mapel"], "has no head 'mapel'.*did you mean 'maple'"),
        (["--head", "maple", "--explain"], "leave out --explain and --cards"),
        (["--head", "maple", "--cards", "cards"], "leave out --explain and --cards"),
        (["--head", "maple", "--templates", "openai"], "leave out --descriptions and --templates"),
        (["--head", "maple", "--classes", "one"], "at least two classes"),
        (["--head", "heads.npz", "--classes", "a,b"], "--head brings its classes"),
    ],
)
def test_mistakes_are_told_in_a_line(flags, message, model_dir, photos, capsys):
    assert main(["classify", str(photos), "--model", str(model_dir), *flags]) != 0
    error = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert re.search(message, error), error
