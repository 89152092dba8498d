"""`clipkit classify --head NAME`: heads of a model directory, for any classes."""

import json

import pytest
import torch
from PIL import Image
from small_models import small_model

import clipkit
from clipkit.cli import main
from clipkit.heads.files import write_head
from clipkit.heads.methods import build_head

TRAINED = ("cat", "dog", "fire truck")
SETTINGS = {
    "maple": {"depth": 1},
    "vpt": {"depth": 1, "num_prompts": 2},
    "coop": {"num_prompts": 2},
    "cocoop": {"num_prompts": 4},
    "clip-adapter": {},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A model with a head of each method, none of which is as it began."""
    path = tmp_path_factory.mktemp("heads") / "model"
    model = small_model().requires_grad_(False)
    model_id = model.save(path)
    torch.manual_seed(3)
    for method, settings in SETTINGS.items():
        head = build_head(method, model, settings)
        head.prepare(model, TRAINED)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        write_head(path, method, head, {"class_names": list(TRAINED)}, model_id=model_id)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        pixels = torch.randint(0, 256, (30, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def answers(capsys, *arguments, status=0):
    assert main(["classify", *map(str, arguments), "--json"]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("names", [TRAINED, ("zebra", "teapot")], ids=["trained", "new"])
@pytest.mark.parametrize("method", SETTINGS)
def test_answers_are_those_of_the_head(model_dir, photos, capsys, method, names):
    chosen = [] if names == TRAINED else ["--classes", ",".join(names)]
    model = clipkit.load(model_dir)
    images = torch.stack([model.preprocess()(Image.open(path)) for path in sorted(photos.glob("*.png"))])
    expected = model.with_head(method).logits(images, names)
    scale = float(model.logit_scale.detach().exp())
    for _ in range(2):  # the second time from the cache
        found = answers(capsys, photos, "--model", model_dir, "--head", method, *chosen)
        assert [answer["path"][-5:] for answer in found] == ["0.png", "1.png", "2.png", "3.png"]
        for answer, logits in zip(found, expected, strict=True):
            by_name = {one["class_name"]: one for one in answer["predictions"]}
            for name, logit, probability in zip(names, logits, logits.softmax(dim=0), strict=True):
                assert by_name[name]["score"] == pytest.approx(float(logit) / scale, abs=1e-5)
                assert by_name[name]["probability"] == pytest.approx(float(probability), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--head", "mapel"], "maple"),
        (["--head", "maple", "--templates", "openai"], "a head has prompts of its own"),
        (["--head", "maple", "--explain"], "leave out --explain and --cards"),
        (["--head", "feats.npz", "--classes", "a,b"], "a --head file brings its classes"),
    ],
)
def test_mistakes_are_one_line(model_dir, photos, capsys, arguments, words):
    assert main(["classify", str(photos), "--model", str(model_dir), *arguments]) in (1, 2)
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
