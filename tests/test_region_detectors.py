"""Detectors behind one interface: functions, models of transformers, region heads."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from broken_shards import photo
from PIL import Image
from small_models import small_model
from tiny_detectors import save_grounding_dino, save_owlv2

import clipkit
from clipkit.preprocess import eval_transform
from clipkit.regions.heads import build_region_head
from clipkit.regions.labelling.detectors import open_detector
from clipkit.regions.labelling.identity import detector_id
from clipkit.regions.labelling.transformers_detector import join_phrases, phrase_scores, tokens_of_spans
from clipkit.windows import eval_window

CPU = torch.device("cpu")
PHRASES = ["a red cat", "the dogs", "a dog"]


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_owlv2(tmp_path_factory.mktemp("owlv2") / "model")


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_grounding_dino(tmp_path_factory.mktemp("dino") / "model")


def test_a_function(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste((220, 30, 30), (10, 5, 30, 15))
    found = open_detector("region_finder:by_colour", device=CPU)(image, ["a dog", "a red thing"])
    assert found.boxes.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert found.phrase_index.tolist() == [1]
    assert found.scores.dtype == torch.float32
    assert open_detector("region_finder:no_box", device=CPU)(image, ["a dog"]).boxes.shape == (0, 4)


def test_a_function_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_finder_of_boxes.py").write_text(
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find(image, phrases):\n"
        "        return [[0, 0, 0.5, 1]], [0.5], [0]\n"
    )
    monkeypatch.chdir(tmp_path)
    detect = open_detector("my_finder_of_boxes:Finder.find", device=CPU)
    assert detect(photo(0), ["a dog"]).boxes.tolist() == [[0, 0, 0.5, 1]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_pixels", "must return xyxy fractions of the picture: .*they look like pixels"),
        ("one_score_short", r"as many scores and phrase numbers as boxes, got \[1\] and \[2\] for 2 boxes"),
        ("not_a_number", r"must return finite scores, got \[nan\]"),
        ("infinite", r"must return finite scores, got \[inf\]"),
        ("between_phrases", r"phrase_index \(K,\): numbers of phrases are whole, got \[0.69"),
        ("no_such_phrase", "must return numbers of the 2 phrases, got 2 to 2"),
        ("nothing_at_all", r"must return boxes \(K, 4\), scores \(K,\) and phrase_index \(K,\)"),
    ],
)
def test_what_a_function_gives_is_checked(name: str, message: str) -> None:
    detect = open_detector(f"region_finder:{name}", device=CPU)
    with pytest.raises(ValueError, match=message):
        detect(photo(0), ["a dog", "a cat"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_module_of_this_name:find", "cannot be imported: No module named"),
        ("region_finder:find", "cannot be imported: .*has no attribute 'find'"),
        ("region_finder:not_a_function", "must be a function, got a int"),
    ],
)
def test_a_function_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_detector(name, device=CPU)


def test_a_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_finder.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="my_broken_finder:find cannot be imported: ZeroDivisionError"):
        open_detector("my_broken_finder:find", device=CPU)


@pytest.mark.parametrize("name", ["det", "det:", ":find", "no/such/folder", "my folder/model"])
def test_a_name_of_another_form_is_told_the_forms(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^--detector must be module:function, the folder of a model, or a "
    ):
        open_detector(name, device=CPU)


def test_a_repository_that_cannot_be_opened_is_told_the_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def refuse(name: str) -> None:
        raise OSError(f"{name} is not a local folder\nIf this is a private repository, ...")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    expected = (
        r"^--detector runs/model cannot be opened .*module:function.*: runs/model is not a local folder$"
    )
    with pytest.raises(OSError, match=expected):
        open_detector("runs/model", device=CPU)


def test_the_id_of_a_function_is_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "my_finder_with_an_id.py"
    module.write_text("def find(image, phrases): ...\n")
    first = detector_id("my_finder_with_an_id:find")
    assert first == hashlib.sha256(b"def find(image, phrases): ...\n").hexdigest()
    module.write_text("def find(image, phrases): return []\n")
    assert detector_id("my_finder_with_an_id:find") not in (None, first)
    assert detector_id("no_module_of_this_name:find") is None
    assert detector_id("no_package_of_this_name.module:find") is None


def test_the_id_of_a_model_is_of_its_towers_and_of_its_region_head(tmp_path: Path) -> None:
    model = small_model()
    ids = [_saved_id(tmp_path, model)]
    for _ in range(2):  # the same towers, and each time a head of new weights
        model.region_head = build_region_head("prompter", model)
        ids.append(_saved_id(tmp_path, model))
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    ids.append(_saved_id(tmp_path, model))
    assert len(set(ids)) == 4
    assert _saved_id(tmp_path, model) == ids[-1]


def _saved_id(tmp_path: Path, model: clipkit.DualEncoder) -> str | None:
    model.save(tmp_path / "model")
    return detector_id(str(tmp_path / "model"))


def test_the_id_of_a_folder_of_transformers_is_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "folder").mkdir()
    first = detector_id(str(tmp_path))
    assert first == detector_id(str(tmp_path))
    stat = (tmp_path / "model.safetensors").stat()
    os.utime(tmp_path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = detector_id(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    os.utime(tmp_path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len({first, second, detector_id(str(tmp_path))}) == 3
    assert detector_id("google/owlv2") is None


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (40, 40)])
def test_owlv2_sees_a_padded_square(size: tuple[int, int], owlv2: Path) -> None:
    """Its boxes are centre, width and height as fractions of the longer side."""
    import transformers

    image = photo(3, size)
    found = open_detector(str(owlv2), device=CPU)(image, PHRASES)
    processor = transformers.AutoProcessor.from_pretrained(owlv2)
    model = transformers.Owlv2ForObjectDetection.from_pretrained(owlv2)
    with torch.no_grad():
        outputs = model(**processor(images=image, text=[PHRASES], return_tensors="pt"))
    x, y, width, height = (outputs.pred_boxes[0] * max(size)).unbind(dim=1)
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    sides = [size[0], size[1]] * 2
    expected = torch.stack([edge / side for edge, side in zip(corners, sides, strict=True)], dim=1)
    torch.testing.assert_close(found.boxes, expected, rtol=0, atol=1e-5)
    assert len(found.boxes) == 16
    best = outputs.logits[0].max(dim=1)
    torch.testing.assert_close(found.scores, best.values.sigmoid())
    assert torch.equal(found.phrase_index, best.indices)


def test_owlv2_at_another_size(owlv2: Path) -> None:
    found = open_detector(str(owlv2), device=CPU, image_size=64)(photo(3, (60, 30)), PHRASES)
    assert len(found.boxes) == (64 // 8) ** 2


def test_owlv2_cuts_long_phrases(owlv2: Path) -> None:
    found = open_detector(str(owlv2), device=CPU)(photo(3), ["a very long phrase of many letters", "a dog"])
    assert len(found.boxes) == 16


def test_grounding_dino_scores_a_phrase_by_the_mean_of_its_tokens(grounding_dino: Path) -> None:
    import transformers

    image = photo(3, (60, 30))
    found = open_detector(str(grounding_dino), device=CPU)(image, PHRASES)
    processor = transformers.AutoProcessor.from_pretrained(grounding_dino)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(grounding_dino)
    inputs = processor(images=image, text="a red cat. the dogs. a dog.", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words == ["[CLS]", "a", "red", "cat", ".", "the", "dog", "##s", ".", "a", "dog", ".", "[SEP]"]
    probabilities = outputs.logits[0].sigmoid()
    means = [probabilities[:, first:last].mean(dim=1) for first, last in [(1, 4), (5, 8), (9, 11)]]
    best = torch.stack(means, dim=1).max(dim=1)
    torch.testing.assert_close(found.scores, best.values)
    assert torch.equal(found.phrase_index, best.indices)
    x, y, width, height = outputs.pred_boxes[0].unbind(dim=1)
    expected = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
    torch.testing.assert_close(found.boxes, expected)


def test_phrases_are_joined_as_grounding_dino_was_trained_on() -> None:
    text, spans = join_phrases(["A cat", "no. 7 bus", "dog"])
    assert text == "a cat. no 7 bus. dog."
    assert [text[start:end] for start, end in spans] == ["a cat", "no 7 bus", "dog"]
    offsets = [(0, 0), (0, 1), (2, 5), (5, 6), (7, 9), (10, 11), (0, 0)]
    tokens = tokens_of_spans(offsets, spans)
    assert tokens.nonzero().tolist() == [[0, 1], [0, 2], [1, 4], [1, 5]]
    scores = phrase_scores(torch.tensor([[0.9, 0.2, 0.4, 0.9, 0.5, 0.7, 0.9]]), tokens)
    torch.testing.assert_close(scores, torch.tensor([[0.3, 0.6, 0.0]]))


@pytest.mark.parametrize("kind", ["prompter", "query-decoder"])
def test_a_region_head_answers_in_fractions_of_the_picture(kind: str, tmp_path: Path) -> None:
    model = small_model()
    model.region_head = build_region_head(kind, model)
    model.save(tmp_path / "model")
    model = clipkit.load(tmp_path / "model")
    image = photo(3, (60, 30))
    found = open_detector(str(tmp_path / "model"), device=CPU)(image, PHRASES)
    pixels = eval_transform(model.preprocess_config)(image)[None]
    shown = model.ground(pixels, PHRASES)
    window = eval_window(model.preprocess_config, (30, 60))
    torch.testing.assert_close(window.apply(found.boxes), shown, rtol=0, atol=1e-5)
    features = model.encode_regions(model.tokens(pixels), shown, torch.zeros(3, dtype=torch.int64))
    cosines = features @ model.encode_text(model.tokenizer(PHRASES), normalize=True).T
    torch.testing.assert_close(found.scores, cosines.max(dim=1).values, rtol=0, atol=1e-5)
    assert torch.equal(found.phrase_index, cosines.argmax(dim=1))


def test_a_model_that_cannot_ground_is_refused_before_the_work(tmp_path: Path) -> None:
    small_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="no region head"):
        open_detector(str(tmp_path / "model"), device=CPU)


def test_other_models_and_sizes_are_refused(tmp_path: Path, grounding_dino: Path) -> None:
    import transformers

    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"is a model of type 'bert', expected one of owlv2, owlvit"):
        open_detector(str(tmp_path / "bert"), device=CPU)
    with pytest.raises(ValueError, match="--detector-size is for OWLv2 and OWL-ViT"):
        open_detector("region_finder:by_colour", device=CPU, image_size=448)
    with pytest.raises(ValueError, match="--detector-size is for OWLv2 and OWL-ViT"):
        open_detector(str(grounding_dino), device=CPU, image_size=448)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is neither a model directory"):
        open_detector(str(tmp_path / "empty"), device=CPU)
