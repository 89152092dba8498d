from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from clipkit.data.image_files import ImageFiles
from clipkit.data.problems import SampleError
from clipkit.data.prompted_images import BAD_REGION, PromptedImages, Region, RegionPrompt
from clipkit.images import decode_image
from clipkit.visual_prompts import KINDS, box_in_pixels, visual_prompt

RED = [255, 0, 0]


def picture(width: int = 10, height: int = 8) -> Image.Image:
    """Red rises to the right, green downwards, blue is 100."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([20 * x, 30 * y, np.full_like(x, 100)], axis=-1).astype(np.uint8))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# Pixels 2 to 5 across (of 10) and 1 to 4 down (of 8).
BOX = (0.2, 1 / 8, 0.6, 5 / 8)
INSIDE = np.zeros((8, 10), dtype=bool)
INSIDE[1:5, 2:6] = True


def test_crop_by_hand() -> None:
    found = visual_prompt(picture(), "crop", box=BOX)
    assert found.size == (4, 4)
    assert (array(found) == array(picture())[1:5, 2:6]).all()


def test_a_red_frame_lies_on_the_outermost_pixels_of_the_box() -> None:
    found = array(visual_prompt(picture(), "box", box=BOX))
    is_red = (found == RED).all(axis=-1)
    frame = INSIDE.copy()
    frame[2:4, 3:5] = False
    assert (is_red == frame).all()
    assert (found[~frame] == array(picture())[~frame]).all()


def test_a_red_ellipse_touches_the_edges_and_not_the_corners() -> None:
    image = picture(12, 8)
    found = array(visual_prompt(image, "circle", box=(1 / 12, 0, 10 / 12, 1)))
    is_red = (found == RED).all(axis=-1)
    assert not is_red[:, 0].any()
    assert not is_red[:, 10:].any()
    assert is_red[3:5, 1].all()
    assert is_red[3:5, 9].all()
    assert is_red[0, 5]
    assert is_red[7, 5]
    assert not is_red[[0, 0, 7, 7], [1, 9, 1, 9]].any()
    assert not is_red[4, 5]
    assert (found[~is_red] == array(image)[~is_red]).all()


@pytest.mark.parametrize(("short_side", "width"), [(8, 1), (336, 2), (672, 4)])
def test_lines_grow_with_the_picture(short_side: int, width: int) -> None:
    image = Image.new("RGB", (2 * short_side, short_side))
    middle = array(visual_prompt(image, "box", box=(0, 0, 1, 1)))[short_side // 2]
    assert (middle == RED).all(axis=-1).sum() == 2 * width


def test_blur_reverse_blurs_everything_else() -> None:
    image, sigma = picture(), 3.0
    found = array(visual_prompt(image, "blur_reverse", box=BOX, sigma=sigma))
    blurred = array(image.filter(ImageFilter.GaussianBlur(sigma)))
    assert (found[INSIDE] == array(image)[INSIDE]).all()
    assert (found[~INSIDE] == blurred[~INSIDE]).all()
    assert (found[~INSIDE] != array(image)[~INSIDE]).any()


def test_the_default_blur_leaves_one_colour_in_a_small_picture() -> None:
    found = array(visual_prompt(picture(), "blur_reverse", box=BOX))
    spread = found[~INSIDE].max(axis=0) - found[~INSIDE].min(axis=0)
    assert spread.max() <= 2


def test_grey_reverse_takes_the_colour_from_everything_else() -> None:
    image = picture()
    found = array(visual_prompt(image, "grey_reverse", box=BOX))
    assert (found[INSIDE] == array(image)[INSIDE]).all()
    red, green, blue = array(image)[7, 9]
    luma = round(0.299 * red + 0.587 * green + 0.114 * blue)
    assert found[7, 9].tolist() == [luma] * 3
    assert (found[~INSIDE].max(axis=1) == found[~INSIDE].min(axis=1)).all()


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16"])
def test_masks_of_any_mode(mode: str) -> None:
    image = picture()
    marked = np.zeros((8, 10), dtype=np.uint8)
    marked[2, 3] = marked[6, 8] = 1
    if mode == "I;16":
        mask = Image.fromarray(marked.astype(np.uint16))
    elif mode == "P":
        mask = Image.fromarray(marked)
        mask = mask.convert("P")
        mask.putpalette([0, 0, 0, 0, 0, 9])
    elif mode == "1":
        mask = Image.fromarray(marked * 255).convert("1")
    else:
        mask = Image.fromarray(marked).convert(mode)
    assert mask.mode == mode
    found = array(visual_prompt(image, "grey_reverse", mask=mask))
    assert (found[marked == 1] == array(image)[marked == 1]).all()
    assert (found[marked == 0] == array(image.convert("L").convert("RGB"))[marked == 0]).all()
    # Kinds that need a box take the extent of the mask.
    assert (array(visual_prompt(image, "crop", mask=mask)) == array(image)[2:7, 3:9]).all()
    # A box, where there is one, is what crop and frames go by, and a mask what is kept.
    assert visual_prompt(image, "crop", mask=mask, box=BOX).size == (4, 4)
    assert (array(visual_prompt(image, "grey_reverse", mask=mask, box=BOX)) == found).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_itself_stays_as_it_was(kind: str) -> None:
    image = picture()
    found = visual_prompt(image, kind, box=(0, 0, 1, 1))
    assert (array(image) == array(picture())).all()
    assert found.size == image.size
    assert found.mode == "RGB"
    is_whole = kind in ("crop", "blur_reverse", "grey_reverse")
    assert (array(found) == array(image)).all() == is_whole
    assert visual_prompt(image.convert("L"), kind, box=BOX).mode == "RGB"


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda edges: edges[0] < edges[1]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda edges: edges[0] < edges[1]),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_a_box_has_a_pixel_and_lies_in_the_image(
    across: tuple[float, float], down: tuple[float, float], width: int, height: int
) -> None:
    left, top, right, bottom = box_in_pixels((across[0], down[0], across[1], down[1]), (width, height))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(st.integers(1, 3000), st.data())
def test_boxes_of_whole_pixels_come_back(length: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(first + 1, length))
    box = (first / length, 0.0, end / length, 1.0)
    assert box_in_pixels(box, (length, 1)) == (first, 0, end, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "blurr", "box": BOX}, "unknown visual prompt 'blurr'; choose from crop, box, circle"),
        ({"kind": "crop"}, "needs a box or a mask of its region, got neither"),
        (
            {"kind": "crop", "box": (0.5, 0, 0.5, 1)},
            "expected a box with 0 <= x0 < x1 <= 1 .*got 0.5, 0, 0.5, 1",
        ),
        ({"kind": "crop", "box": (0.5, 0, 0.4, 1)}, "got 0.5, 0, 0.4, 1"),
        ({"kind": "crop", "box": (0, 0, 30, 20)}, "in fractions of the image, got 0, 0, 30, 20"),
        ({"kind": "crop", "box": (-0.1, 0, 1, 1)}, "got -0.1, 0, 1, 1"),
        ({"kind": "crop", "box": (float("nan"), 0, 1, 1)}, "got nan, 0, 1, 1"),
        ({"kind": "crop", "box": (0, 0, 1)}, "four edges x0, y0, x1, y1, got 3"),
        ({"kind": "crop", "mask": Image.new("L", (8, 10), 1)}, "size of its image, 10 x 8, got 8 x 10"),
        ({"kind": "box", "mask": Image.new("L", (10, 8))}, "must mark a pixel or more, got none"),
        ({"kind": "blur_reverse", "box": BOX, "sigma": 0.0}, "sigma must be > 0 pixels, got 0"),
    ],
)
def test_what_is_no_region_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        visual_prompt(picture(), **arguments)
    assert "\n" not in str(raised.value)


@pytest.fixture
def photos(tmp_path: Path) -> ImageFiles:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    picture().save(paths[0])
    picture(20, 4).save(paths[1])
    Image.fromarray(INSIDE.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    return ImageFiles(paths)


def test_a_source_of_prompted_images(photos: ImageFiles) -> None:
    prompts = [
        RegionPrompt(0, 0, Region(BOX), "crop"),
        RegionPrompt(0, 1, Region((2, 1, 6, 5), in_pixels=True), "blur_reverse"),
        RegionPrompt(1, 0, Region((0, 0, 1, 1), mask=photos.paths[0].parent / "mask.png"), "grey_reverse"),
        RegionPrompt(1, 1, Region((-3, 1, 5, 99), in_pixels=True), "crop"),
    ]
    source = PromptedImages(photos, prompts, sigma=3)
    assert len(source) == 4
    first = source.read(0)
    assert first.key == source.where(0) == f"{photos.paths[0]}#0/crop"
    assert first.fields == {"prompt": 0}
    assert (array(decode_image(first.image)) == array(picture())[1:5, 2:6]).all()
    second = source.read(1)
    assert second.key.endswith("a.png#1/blur_reverse")
    expected = visual_prompt(picture(), "blur_reverse", box=BOX, sigma=3)
    assert (array(decode_image(second.image)) == array(expected)).all()
    with pytest.raises(SampleError, match="a mask must have the size of its image, 20 x 4") as raised:
        source.read(2)
    assert raised.value.reason == BAD_REGION
    # What sticks out is cut off; in any order, and twice, the same.
    assert (array(decode_image(source.read(3).image)) == array(picture(20, 4))[1:4, 0:5]).all()
    assert source.read(0) == first


def test_regions_with_masks(photos: ImageFiles) -> None:
    mask = photos.paths[0].parent / "mask.png"
    source = PromptedImages(photos, [RegionPrompt(0, 0, Region((0, 0, 1, 1), mask=mask), "grey_reverse")])
    expected = visual_prompt(picture(), "grey_reverse", box=BOX)
    assert (array(decode_image(source.read(0).image)) == array(expected)).all()


@pytest.mark.parametrize(
    ("break_it", "region", "reason"),
    [
        ("unlink", Region((0, 0, 1, 1)), "missing file"),
        ("cut", Region((0, 0, 1, 1)), "corrupt image"),
        ("", Region((0, 0, 1, 1), mask=Path("no.png")), "missing file"),
        ("", Region((10, 0, 20, 5), in_pixels=True), BAD_REGION),
        ("", Region((0.5, 0, 0.2, 1)), BAD_REGION),
    ],
)
def test_bad_samples_have_a_reason(photos: ImageFiles, break_it: str, region: Region, reason: str) -> None:
    path = photos.paths[0]
    if break_it == "unlink":
        path.unlink()
    elif break_it == "cut":
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SampleError) as raised:
        PromptedImages(photos, [RegionPrompt(0, 0, region, "crop")]).read(0)
    assert raised.value.reason == reason


def test_the_bytes_are_an_image_file_of_the_same_pixels(photos: ImageFiles) -> None:
    source = PromptedImages(photos, [RegionPrompt(1, 0, Region((0, 0, 1, 1)), "crop")])
    with Image.open(io.BytesIO(source.read(0).image)) as image:
        assert (array(image) == array(picture(20, 4))).all()
