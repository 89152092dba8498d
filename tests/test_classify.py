"""`clipkit classify`, and the parts of it that have features of a model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from clipkit.zeroshot.classifier import build_classifier, prompts_of_descriptions, prompts_of_names
from clipkit.zeroshot.descriptions import DescriptionBank, PromptFormat
from clipkit.zeroshot.encoder import Encoder
from PIL import Image
from small_models import small_model

from clipkit import packed_texts
from clipkit.cli import main
from clipkit.data.image_files import ImageFiles, find_images
from clipkit.evaluation import class_features, encode_texts
from clipkit.feature_cache import FeatureCache

NAMES = ("a red circle", "dog", "a very long name of a class that has many words")
BANK = {"cat": ["whiskers", "a long tail"], "Fire_Truck": [], "dog": ["often barks"]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "red")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    small_model().save(path)
    return path


def _cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache.sqlite", 16)


def test_texts_of_any_length_and_number_are_encoded_as_one_by_one() -> None:
    model = small_model().eval()
    texts = ["a dog", "a red circle on a blue square", "a dog", "", "one two three four five six"]
    done: list[int] = []
    with torch.inference_mode():
        together = encode_texts(model, texts, device=torch.device("cpu"), batch_size=2, progress=done.append)
        alone = torch.cat([model.encode_text(model.tokenizer([text])) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    assert sum(done) == len(texts)
    assert encode_texts(model, [], device=torch.device("cpu")).shape == (0, 16)


def test_equal_texts_are_encoded_once_and_short_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model().eval()
    monkeypatch.setattr(packed_texts, "can_pack", lambda _: False)
    shapes = []
    real = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda text: (shapes.append(text.shape[0]), real(text))[1])
    texts = ["a b c d e f", "a", "b", "a b c d e g"] * 50
    with torch.inference_mode():
        encode_texts(model, texts, device=torch.device("cpu"), batch_size=2)
    assert shapes == [2, 2]


def test_a_classifier_by_names_is_that_of_evaluation() -> None:
    model = small_model().eval()
    templates = ("a {c}.", "the picture of a {c}")
    classifier = build_classifier(Encoder(model, None), prompts_of_names(NAMES, templates))
    expected = class_features(model, NAMES, templates, device=torch.device("cpu"))
    torch.testing.assert_close(classifier.weights, expected, rtol=0, atol=2e-6)


def test_a_classifier_by_descriptions_takes_the_mean_of_cosines() -> None:
    encoder = Encoder(small_model(), None)
    names = ("dog", "fire truck", "cat")
    prompt_set = prompts_of_descriptions(names, DescriptionBank.of(BANK), PromptFormat())
    assert prompt_set.prompts == (
        "dog, which often barks.",
        "fire truck.",
        "cat, which has whiskers.",
        "cat, which is a long tail.",
    )
    assert prompt_set.shown == ("often barks", "fire truck.", "whiskers", "a long tail")
    image = F.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = build_classifier(encoder, prompt_set).scores(image)
    cosines = image @ encoder.texts(prompt_set.prompts).T
    expected = torch.stack([cosines[:, 0], cosines[:, 1], cosines[:, 2:].mean(1)], dim=1)
    torch.testing.assert_close(scores, expected)


def test_a_second_question_costs_no_forward_pass(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    files = ImageFiles(find_images([str(photos)]))
    first = Encoder(model, _cache(tmp_path)).images(files)
    plain = Encoder(model, None).images(files)
    texts = Encoder(model, _cache(tmp_path)).texts(NAMES)
    monkeypatch.setattr(model, "encode_image", lambda *_: pytest.fail("an image was encoded"))
    monkeypatch.setattr(model, "encode_text", lambda *_: pytest.fail("a text was encoded"))
    encoder = Encoder(model, _cache(tmp_path))
    second = encoder.images(files)
    assert first.num_from_cache == 0
    assert second.num_from_cache == 4
    for found in (first, second, plain):
        assert found.index.tolist() == [0, 1, 2, 3]
        assert found.unreadable == {4: "not an image"}
        assert torch.equal(found.features, first.features)
    assert torch.equal(encoder.texts(NAMES[::-1]), texts.flip(0))


def test_changed_content_is_another_picture_and_a_moved_file_is_the_same(
    tmp_path: Path, photos: Path
) -> None:
    model = small_model()
    first = Encoder(model, _cache(tmp_path)).images(ImageFiles(find_images([str(photos)])))
    # Files with equal content are encoded once.
    assert torch.equal(first.features[0], first.features[3])
    (photos / "1.png").rename(photos / "moved.png")
    Image.new("RGB", (40, 30), "white").save(photos / "2.png")
    second = Encoder(model, _cache(tmp_path)).images(ImageFiles(find_images([str(photos)])))
    assert second.num_from_cache == 3
    assert torch.equal(second.features[3], first.features[1])
    assert not torch.equal(second.features[1], first.features[2])


def _classify(model_dir: Path, *arguments: str) -> int:
    return main(["classify", *arguments, "--model", str(model_dir)])


def test_text_and_json_say_the_same(
    model_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(photos), "--classes", "red, green,blue", "--top", "2"]
    assert _classify(model_dir, *arguments) == 1
    printed = capsys.readouterr()
    assert "4 of 5 pictures" in printed.err
    assert f"not read: {photos}/broken.jpg: not an image" in printed.err
    assert _classify(model_dir, *arguments, "--json", "--explain") == 1
    again = capsys.readouterr()
    assert "features of 4 were known" in again.err
    records = [json.loads(line) for line in again.out.splitlines()]
    assert [record["path"] for record in records] == [f"{photos}/{number}.png" for number in range(4)]
    for line, record in zip(printed.out.splitlines(), records, strict=True):
        assert len(record["predictions"]) == 2
        first, second = record["predictions"]
        assert first["score"] >= second["score"]
        assert first["probability"] + second["probability"] < 1
        assert line.startswith(f"{record['path']}  {first['class_name']} {100 * first['probability']:.1f} %")
        assert [reason["class_name"] for reason in record["explanations"]] == [
            first["class_name"],
            second["class_name"],
        ]
        assert record["explanations"][0]["descriptors"] == [
            [f"a photo of a {first['class_name']}.", pytest.approx(first["score"], abs=1e-6)]
        ]


def test_descriptions_and_paths_from_standard_input(
    model_dir: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bank.json").write_text(json.dumps(BANK))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos}/0.png\n{photos}/2.png\n"))
    assert _classify(model_dir, "--descriptions", str(tmp_path / "bank.json"), "--explain", "--no-cache") == 0
    printed = capsys.readouterr()
    assert "features of 0 were known" in printed.err
    assert printed.out.count("whiskers") <= 2
    assert sum(line.startswith(str(photos)) for line in printed.out.splitlines()) == 2
    shown = {line.split("  ")[-1] for line in printed.out.splitlines() if line.startswith("    ")}
    assert shown <= {"whiskers", "a long tail", "Fire Truck.", "often barks"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "give the classes: --classes a,b,c"),
        (["photos", "--classes", "a,b", "--classes-file", "x"], "one of --classes and --classes-file"),
        (["photos", "--classes", "a,b,a"], "lists 'a' more than once"),
        (["photos", "--classes-file", "empty.txt"], "must name at least two classes, got none"),
        (["photos", "--descriptions", "bank.json", "--classes", "cat,cow"], "no descriptions of 'cow'"),
        (["photos", "--classes", "a,b", "--templates", "bad.txt"], "need {c} where the class name goes"),
        (["nothing", "--classes", "a,b"], "found none in"),
        (["photos", "--classes", "a,b", "--top", "0"], "--top must be at least 1, got 0"),
        (["elsewhere", "--classes", "a,b"], "there is no file or folder"),
    ],
)
def test_bad_input_is_one_line(
    model_dir: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.txt").write_text("a photo\n")
    (tmp_path / "bank.json").write_text(json.dumps(BANK))
    assert _classify(model_dir, *arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
