"""Fine-grained classes of scenes, their descriptions, and the files that hold them."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from clipkit.zeroshot.datasets import open_images
from clipkit.zeroshot.descriptions import DescriptionBank
from PIL import Image

from clipkit.complete_folder import complete_folder
from clipkit.scene_descriptions import (
    VARIETIES,
    VarietyShards,
    describe_specimen,
    object_descriptions,
    specimens,
    write_varieties,
)
from clipkit.scene_objects import CLASSES, COLOURS, SHAPES, Background, SceneObject
from clipkit.scene_sampling import Scene, generate
from clipkit.scenes import class_names

SMALL = VarietyShards(num_train=2, num_test=1, seed=5)


def test_three_varieties_of_each_shape_share_no_colour() -> None:
    assert len(VARIETIES) == len({variety.name for variety in VARIETIES}) == 3 * len(SHAPES)
    for shape in SHAPES:
        own = [variety for variety in VARIETIES if variety.shape == shape]
        colours = [colour for variety in own for colour in variety.colours]
        assert len(own) == 3
        assert len(colours) == len(set(colours)) == 6
        assert set(colours) <= set(COLOURS)
        # A name says its shape, and no colour.
        assert all(variety.name.split()[1] == shape for variety in own)
        assert not any(colour in variety.name for variety in own for colour in COLOURS)


def test_a_specimen_is_described_by_its_attributes() -> None:
    star = SceneObject("star", "red", "small", 0.1, 0.1, 0.12, (220, 25, 30))
    heart = SceneObject("heart", "pink", "large", 0.5, 0.5, 0.2, (255, 130, 190))
    scene = Scene("000000001", (star,), Background("noisy", "white", 1), ())
    assert describe_specimen(scene) == [
        "a red star",
        "a small star",
        "a star at the top left",
        "on a white background",
        "on a noisy background",
    ]
    scene = Scene("000000001", (heart,), Background("plain", "lilac", 1), ())
    assert describe_specimen(scene)[2:] == [
        "a heart in the center",
        "on a lilac background",
        "on a plain background",
    ]


def test_specimens_show_their_variety_and_all_else_varies() -> None:
    train, test = specimens(VarietyShards(num_train=6, num_test=3))
    for drawn, number in ((train, 6), (test, 3)):
        labels = [label for label, _ in drawn]
        assert sorted(labels) == [label for label in range(len(VARIETIES)) for _ in range(number)]
        for label, scene in drawn:
            (obj,) = scene.objects
            assert obj.shape == VARIETIES[label].shape
            assert obj.colour in VARIETIES[label].colours
    assert not {scene.key for _, scene in train} & {scene.key for _, scene in test}
    for attribute in ("size", "cell"):
        own = {getattr(scene.objects[0], attribute) for label, scene in train if label < 3}
        assert len(own) > 1
    assert len({scene.background.style for label, scene in train if label < 3}) == 4
    # They are no test images of the objects, which begin with the first scene.
    assert min(int(scene.key) for _, scene in train) > 100_000


def test_the_files(tmp_path: Path) -> None:
    out = write_varieties(tmp_path / "varieties", SMALL)
    names = [variety.name for variety in VARIETIES]
    assert (out / "classnames.txt").read_text().splitlines() == names
    bank = DescriptionBank.read(out / "descriptions.json")
    described = dict(zip(names, bank.match(names), strict=True))
    first = {}
    for split, number in (("train", 2), ("test", 1)):
        assert (out / split / "nshards.txt").read_text() == "1\n"
        source = open_images(str(out / split), require=("label", "fields"))
        assert list(source.classnames or ()) == names
        samples = [source.read(index) for index in range(len(source))]
        assert sorted(sample.label for sample in samples) == sorted(list(range(24)) * number)
        for sample in samples:
            (thing,) = sample.fields["objects"]
            variety = VARIETIES[sample.label or 0]
            assert thing["shape"] == variety.shape
            assert thing["colour"] in variety.colours
            assert Image.open(io.BytesIO(sample.image)).size == (64, 64)
            if split == "train":
                first.setdefault(sample.label, sample.fields)
    # Each description is that of the first training image of its class, whatever it shows.
    for label, fields in first.items():
        thing, ground = fields["objects"][0], fields["background"]
        texts = described[names[label]]
        assert texts[0] == f"a {thing['colour']} {thing['shape']}"
        assert texts[1] == f"a {thing['size']} {thing['shape']}"
        assert texts[2].endswith(f" the {thing['cell']}")
        assert texts[3:] == (f"on a {ground['tone']} background", f"on a {ground['style']} background")


def test_the_bytes_follow_from_the_settings(tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    one, two = (write_varieties(tmp_path / name, SMALL) for name in ("one", "two"))
    other = write_varieties(tmp_path / "other", VarietyShards(num_train=2, num_test=1, seed=6))
    assert content(one) == content(two)
    assert content(one)["descriptions.json"] != content(other)["descriptions.json"]
    before = (one / "test" / "0.tar").stat().st_mtime_ns
    assert write_varieties(one, SMALL) == one
    assert (one / "test" / "0.tar").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="already holds something else; name a new folder or remove it"):
        write_varieties(one, VarietyShards(num_train=2, num_test=1, seed=6))


def test_objects_are_described_by_specimens_of_their_own_class() -> None:
    described = object_descriptions(seed=3)
    assert list(described) == class_names()
    for (colour, shape), texts in zip(CLASSES, described.values(), strict=True):
        assert texts[0] == f"a {colour} {shape}"
        assert len(texts) == 5
    assert described == object_descriptions(seed=3) != object_descriptions(seed=4)
    shown = [describe_specimen(scene) for scene in generate(64, seed=3, split="objects")]
    assert list(described.values()) != shown


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="num_train and num_test must be >= 1, got 1 and 0"):
        VarietyShards(num_train=1, num_test=0)


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def fill(*, fails: bool) -> None:
        with complete_folder(out, "done.json", "all\n") as root:
            assert root is not None
            assert not out.exists()
            (root / "a").write_text("a")
            if fails:
                raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fill(fails=True)
    assert list((tmp_path / "deep").iterdir()) == []
    fill(fails=False)
    assert json.dumps(sorted(path.name for path in out.iterdir())) == '["a", "done.json"]'
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask
    with complete_folder(out, "done.json", "all\n") as root:
        assert root is None
    with (
        pytest.raises(FileExistsError, match="already holds something else"),
        complete_folder(out, "done.json", "other\n"),
    ):
        pass
    assert (out / "done.json").read_text() == "all\n"


def test_tar_members_are_in_the_layout_of_clip_benchmark(tmp_path: Path) -> None:
    out = write_varieties(tmp_path / "varieties", SMALL)
    with tarfile.open(out / "test" / "0.tar") as tar:
        members = tar.getnames()
    assert {name.split(".", 1)[1] for name in members} == {"jpg", "cls", "json"}
    assert all(name[0] == "s" and name[1:8].isdigit() for name in members)
    assert len(members) == 3 * len(VARIETIES)
