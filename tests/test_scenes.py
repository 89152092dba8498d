import json
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipkit.scene_captions import noun_phrase
from clipkit.scene_drawing import draw, draw_background
from clipkit.scene_objects import CELLS, COLOURS, RADII, SHAPES, STYLES, TONES
from clipkit.scenes import (
    CLASSES,
    UNSEEN_CLASSES,
    Background,
    Description,
    Has,
    Related,
    SceneObject,
    SceneShards,
    StandsOn,
    class_names,
    describe,
    generate,
    relation,
    unseen_class_names,
    write_shards,
)

TINY = SceneShards(num_train=7, num_train_objects=4, num_val=3, num_objects=5, shard_size=3)
PLAIN = Background("plain", "gray", 0)


def an_object(shape="circle", colour="red", size="large", x=0.5, y=0.5, radius=0.18):
    return SceneObject(shape, colour, size, x, y, radius, COLOURS[colour])


@pytest.fixture(scope="module")
def val_scenes():
    return list(generate(300, seed=3, split="val"))


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_importing_scenes_does_not_import_torch():
    code = "import sys, clipkit.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scene_depends_on_seed_split_and_index_alone():
    scenes = list(generate(6, seed=5, split="train"))
    assert list(generate(2, seed=5, split="train", start=4)) == scenes[4:]
    assert [s.objects for s in generate(6, seed=6, split="train")] != [s.objects for s in scenes]
    assert [s.objects for s in generate(6, seed=5, split="val")] != [s.objects for s in scenes]
    assert scenes[0].draw().tobytes() == scenes[0].draw().tobytes()


def test_unknown_split_is_refused_at_the_call():
    with pytest.raises(ValueError, match="unknown split 'test'; choose from train, train_objects, val"):
        generate(1, split="test")


def test_held_out_combinations_leave_every_word_in_training():
    assert len(CLASSES) == 64
    assert sorted(colour for colour, _ in UNSEEN_CLASSES) == sorted(COLOURS)
    assert sorted(shape for _, shape in UNSEEN_CLASSES) == sorted(SHAPES)
    shown = {(o.colour, o.shape) for scene in generate(600, split="train") for o in scene.objects}
    assert shown == set(CLASSES) - set(UNSEEN_CLASSES)
    held_out = {(o.colour, o.shape) for scene in generate(600, split="val") for o in scene.objects}
    assert held_out == set(CLASSES)


def test_training_texts_never_name_a_held_out_combination():
    texts = [c.text for scene in generate(600, split="train") for c in scene.captions]
    assert not [t for t in texts if any(name in t for name in unseen_class_names())]


def test_object_scenes_go_through_the_classes():
    scenes = list(generate(130, split="objects"))
    assert [s.objects[0].class_id for s in scenes] == [i % 64 for i in range(130)]
    assert {len(s.objects) for s in scenes} == {1}
    assert class_names()[scenes[9].objects[0].class_id] == "brown square"


def test_scenes_are_varied(val_scenes):
    assert set(Counter(len(s.objects) for s in val_scenes)) == {1, 2, 3, 4}
    assert {s.background.style for s in val_scenes} == set(STYLES)
    assert {s.background.tone for s in val_scenes} == set(TONES)
    assert {o.cell for s in val_scenes for o in s.objects} == set(CELLS)
    claims = Counter(type(claim) for s in val_scenes for c in s.captions for claim in c.claims)
    assert min(claims[kind] for kind in (Has, Related, StandsOn)) > 25
    assert {c.number for s in val_scenes for cap in s.captions for c in cap.claims if isinstance(c, Has)} == {
        1,
        2,
        3,
    }
    assert len({c.text for s in val_scenes for c in s.captions}) > 0.9 * 4 * len(val_scenes)


def test_every_caption_is_true_and_every_foil_false(val_scenes):
    kinds = Counter()
    for scene in val_scenes:
        assert all(caption.is_true_of(scene.objects, scene.background) for caption in scene.captions)
        for foil in scene.foils():
            kinds[foil.kind] += 1
            assert foil.caption.is_true_of(scene.objects, scene.background)
            assert not foil.foil.is_true_of(scene.objects, scene.background)
            assert foil.caption.text != foil.foil.text
    assert set(kinds) == {"binding", "size", "cell", "relation", "count"}
    assert min(kinds.values()) > 20


def test_text_says_exactly_the_claims(val_scenes):
    """The words of the attributes in a sentence are those of its claims, no more and no fewer."""
    for scene in val_scenes:
        for caption in scene.captions:
            words = caption.text.replace(",", "").replace("tiny", "small").replace("big", "large").split()
            has = [claim for claim in caption.claims if isinstance(claim, Has)]
            said = Counter(w for w in words if w in COLOURS or w in RADII)
            assert said == Counter(v for c in has for v in (c.what.colour, c.what.size) if v)
            nouns = Counter(w.removesuffix("es") if w == "crosses" else w for w in words)
            for shape in SHAPES:
                expected = sum(c.what.shape == shape for c in has)
                assert nouns[shape] + nouns[f"{shape}s"] == expected
            for claim in caption.claims:
                if isinstance(claim, StandsOn):
                    assert caption.text.endswith(f"on a {claim.style} {claim.tone} background")


def test_full_captions_mostly_identify_their_scene(val_scenes):
    for detail, least in (("names", 0.8), ("partial", 0.9), ("full", 0.98)):
        captions = [c for s in val_scenes for c in s.captions if c.detail == detail]
        fits = [sum(c.is_true_of(s.objects, s.background) for s in val_scenes) for c in captions]
        assert np.mean([1 / n for n in fits]) > least


def test_claims_by_hand():
    red, blue = an_object("circle", "red", x=0.2), an_object("star", "blue", "small", x=0.8)
    scene = ((red, blue), PLAIN)
    assert Has(Description("red", "circle")).holds(*scene)
    assert not Has(Description("blue", "circle")).holds(*scene)
    assert Has(Description(size="large", cell="left")).holds(*scene)
    assert not Has(Description("red"), 2).holds(*scene)
    assert Has(Description(), 2).holds(*scene)
    assert not Has(Description(), 3).holds(*scene)
    assert Related(Description("red"), "left of", Description(shape="star")).holds(*scene)
    assert not Related(Description("red"), "right of", Description(shape="star")).holds(*scene)
    assert StandsOn("plain", "gray").holds(*scene)
    assert not StandsOn("noisy", "gray").holds(*scene)


@pytest.mark.parametrize(
    ("dx", "dy", "word"),
    [
        (0.3, 0.1, "right of"),
        (-0.3, 0.2, "left of"),
        (0.1, -0.4, "above"),
        (0.0, 0.4, "below"),
        (0.3, 0.3, None),
        (0.1, 0.0, None),
    ],
)
def test_relation_words(dx, dy, word):
    assert relation(an_object(x=0.5 + dx, y=0.5 + dy), an_object()) == word


def test_noun_phrases():
    assert (
        noun_phrase(Description("red", "cross", "small", "top left")) == "a small red cross at the top left"
    )
    assert noun_phrase(Description("red", "cross"), 3) == "three red crosses"
    assert noun_phrase(Description(cell="center")) == "a shape in the center"


def test_phrases_single_out_their_object(val_scenes):
    for scene in val_scenes:
        assert len(set(scene.phrases())) == len(scene.objects)
    pair = (an_object(x=0.2), an_object(x=0.8), an_object("star", "blue", "small", y=0.2, radius=0.1))
    assert replace(val_scenes[0], objects=pair).phrases() == (
        "the large red circle at the left",
        "the large red circle at the right",
        "the small blue star",
    )


def test_boxes_lie_inside_and_apart(val_scenes):
    for scene in val_scenes:
        boxes = np.array([o.box for o in scene.objects])
        assert boxes.min() > 0
        assert boxes.max() < 1
        assert len({o.cell for o in scene.objects}) == len(boxes)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("image_size", [64, 97])
def test_drawn_pixels_fill_the_box(shape, image_size):
    for scene in generate(300, seed=1, split="objects"):
        obj = scene.objects[0]
        if obj.shape != shape:
            continue
        image = draw([obj], scene.background, image_size)
        difference = np.abs(
            np.asarray(image, int) - np.asarray(draw_background(scene.background, image_size), int)
        )
        rows, columns = np.nonzero(difference.max(axis=2) > 3)
        extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(extent, obj.pixel_box(image_size))).max() <= 1


def test_shapes_and_colours_differ_as_drawn():
    backdrop = Background("plain", "gray", 0)
    images = [np.asarray(draw([an_object(s, c)], backdrop, 64), int) for c in COLOURS for s in SHAPES]
    closest = min(np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i])
    assert closest > 1.0


def test_ring_shows_the_background_inside():
    image = draw([an_object("ring", "red")], PLAIN, 64)
    assert image.getpixel((32, 32)) == draw_background(PLAIN, 64).getpixel((0, 0))


def test_lone_objects_to_train_on_are_named_and_never_of_an_unseen_class():
    scenes = list(generate(112, split="train_objects"))
    names = [name for name in class_names() if name not in unseen_class_names()]
    assert [class_names()[s.objects[0].class_id] for s in scenes] == names * 2
    for scene in scenes:
        name = class_names()[scene.objects[0].class_id]
        assert [c.text for c in scene.captions] == [
            f"a {name}",
            f"a picture of a {name}",
            f"a picture with a {name}",
            f"an image of a {name}",
        ]
        assert all(c.is_true_of(scene.objects, scene.background) for c in scene.captions)


def test_written_shards(tmp_path):
    out = write_shards(tmp_path / "scenes", TINY)
    assert json.loads((out / "train/sizes.json").read_text()) == {
        "00000.tar": 3,
        "00001.tar": 3,
        "00002.tar": 1,
    }
    assert json.loads((out / "val/sizes.json").read_text()) == {"00000.tar": 3}
    assert (out / "objects/test/nshards.txt").read_text() == "2\n"
    assert (out / "objects/classnames.txt").read_text().splitlines() == class_names()
    assert (out / "objects/unseen_classnames.txt").read_text().splitlines() == unseen_class_names()
    templates = (out / "objects/zeroshot_classification_templates.txt").read_text().splitlines()
    assert len(templates) == 4
    assert all("{c}" in template for template in templates)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scenes"]


def test_members_of_a_shard(tmp_path):
    out = write_shards(tmp_path / "scenes", TINY)
    scene = next(generate(1, seed=0, split="train", start=3))
    files = members(out / "train/00001.tar")
    assert list(files)[:3] == ["000000003.jpg", "000000003.json", "000000003.txt"]
    assert files["000000003.txt"].decode().splitlines() == [c.text for c in scene.captions]
    assert json.loads(files["000000003.json"]) == json.loads(json.dumps(describe(scene, with_foils=False)))
    (tmp_path / "3.jpg").write_bytes(files["000000003.jpg"])
    stored = np.asarray(Image.open(tmp_path / "3.jpg"), int)
    assert np.abs(stored - np.asarray(scene.draw(64), int)).mean() < 5
    objects = members(out / "objects/test/1.tar")
    assert objects["s0000003.cls"] == b"3"


def test_description_holds_regions_and_claims(val_scenes):
    scene = next(s for s in val_scenes if s.foils())
    fields = describe(scene)
    assert [r["phrase"] for r in fields["regions"]] == list(scene.phrases())
    assert (
        np.abs(np.array([r["box"] for r in fields["regions"]]) - [o.box for o in scene.objects]).max() < 1e-6
    )
    assert [o["shape"] for o in fields["objects"]] == [o.shape for o in scene.objects]
    assert fields["claims"][0][0]["claim"] == "Has"
    assert len(fields["foils"]) == len(scene.foils())


def test_shard_bytes_depend_on_the_settings_alone(tmp_path):
    seen = []
    first = write_shards(tmp_path / "one", TINY)
    second = write_shards(
        tmp_path / "two", TINY, num_processes=2, progress=lambda done, total: seen.append((done, total))
    )
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(names) == 17
    assert names == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert seen[-1] == (19, 19)


def test_same_settings_are_kept_and_others_refused(tmp_path):
    out = write_shards(tmp_path / "scenes", TINY)
    before = (out / "train/00000.tar").stat().st_mtime_ns
    assert write_shards(out, TINY) == out
    assert (out / "train/00000.tar").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="already holds something else; name a new folder"):
        write_shards(out, replace(TINY, seed=1))


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "scenes", TINY, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", [{"image_size": 8}, {"shard_size": 0}, {"num_val": 0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SceneShards(**setting)
