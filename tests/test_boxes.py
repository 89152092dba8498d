"""Boxes: formats, what is refused and counted, and that they stay on what they enclosed."""

import math

import pytest
import torch
from PIL import Image

from clipkit.augment import AugmentConfig
from clipkit.preprocess import PreprocessConfig, TrainTransform, eval_transform
from clipkit.regions import boxes
from clipkit.windows import Window, eval_window


def test_formats_by_hand():
    given = {"xyxy": [20, 10, 60, 50], "xywh": [20, 10, 40, 40], "cxcywh": [40, 30, 40, 40]}
    for box_format, box in given.items():
        found = boxes.to_fractions(torch.tensor([box]).double(), box_format, (100, 200))
        assert found.tolist() == [[0.1, 0.1, 0.3, 0.5]]


@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("image_size", [None, (37, 1024)])
def test_a_round_trip_changes_nothing(box_format, image_size):
    corners = torch.rand(50, 2, 2).sort(dim=1).values.flatten(1)
    there = boxes.from_fractions(corners, box_format, image_size)
    back = boxes.to_fractions(there, box_format, image_size)
    torch.testing.assert_close(back, corners, rtol=0, atol=1e-6)


def test_unusable_boxes_are_counted():
    nan = float("nan")
    found = boxes.clean(
        [
            [0.1, 0.1, 0.4, 0.4],
            [nan, 0, 1, 1],
            [0, 0, 1],
            None,
            [0.4, 0.1, 0.1, 0.4],
            [0.2, 0.2, 0.2, 0.6],
            [0.9, 0.0, 1.3, 0.5],
            [-0.2, 0.0, 0.6, 1.0],
            [0.5, 0.5, 0.9, 0.9],
            [0.0, 0.0, 0.1, 0.1],
            [0.0, 0.0, 0.1, 0.2],
            [0.0, 0.0, 0.1, 0.3],
            [0.0, 0.0, 0.1, 0.4],
        ]
    )
    assert found.kept.tolist() == [0, 7, 8, 9, 10, 11, 12]
    assert found.problems == {
        boxes.NOT_NUMBERS: 3,
        boxes.WRONG_ORDER: 1,
        boxes.NO_AREA: 1,
        boxes.OUTSIDE: 1,
    }
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.0, 0.0, 0.6, 1.0]))


def test_an_integer_beyond_fp64_is_no_finite_number():
    found = boxes.clean([[0, 0, 1, 1], [0, 0, 10**400, 1]])
    assert found.kept.tolist() == [0]
    assert found.problems == {boxes.NOT_NUMBERS: 1}


@pytest.mark.parametrize("sliver", [[0.5, 0.5, 0.5 + 1e-9, 0.9], [0.2, 0.9, 0.7, 0.9 + 1e-12]])
def test_a_box_without_area_in_fp32_is_none(sliver):
    found = boxes.usable(torch.tensor([sliver, [0.5, 0.5, 0.5 + 1e-6, 0.9]], dtype=torch.float64))
    assert found.kept.tolist() == [1]
    assert found.problems == {boxes.NO_AREA: 1}
    assert boxes.area(found.boxes).item() > 0


def test_no_boxes_are_no_problem():
    found = boxes.clean([])
    assert found.boxes.shape == (0, 4)
    assert found.problems == {}


def test_pixels_without_a_size_are_refused():
    with pytest.raises(ValueError, match="look like pixels"):
        boxes.clean([[10, 20, 30, 40], [1, 2, 30, 40]])


def test_another_convention_is_named():
    coco = [[100, 10, 30, 40], [150, 80, 20, 15], [60, 60, 50, 30]]
    with pytest.raises(ValueError, match=r"pixels, but 3 of 3 .* possible as x, y, width, height in pixels"):
        boxes.clean(coco, "xyxy", (100, 200))
    assert len(boxes.clean(coco, "xywh", (100, 200)).kept) == 3


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="box_format must be one of xyxy, xywh, cxcywh, got 'yxyx'"):
        boxes.to_fractions(torch.zeros(1, 4), "yxyx")


def test_a_window_by_hand():
    right_half = Window(0.5, 0.0, 1.0, 1.0)
    box = torch.tensor([[0.75, 0.25, 1.0, 0.5]])
    assert right_half.apply(box).tolist() == [[0.5, 0.25, 1.0, 0.5]]
    mirrored = Window(0.5, 0.0, 1.0, 1.0, is_mirrored=True)
    assert mirrored.apply(box).tolist() == [[0.0, 0.25, 0.5, 0.5]]


def test_boxes_that_fall_out_of_the_window_are_counted():
    left_half = Window(0.0, 0.0, 0.5, 1.0)
    found = boxes.shown(
        torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.4, 0.0, 0.9, 1.0], [0.3, 0, 0.6, 1]]), left_half
    )
    assert found.kept.tolist() == [0, 2]
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.6, 0.0, 1.0, 1.0]))
    assert found.problems == {boxes.CUT_OFF: 1}


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_window_inverts(is_mirrored):
    window = Window(-0.3, 0.2, 0.9, 1.4, is_mirrored)
    given = torch.rand(20, 4, dtype=torch.float64)
    torch.testing.assert_close(window.invert(window.apply(given)), given)


def _picture(generator):
    """A picture with one coloured rectangle, and its box."""
    height, width = (int(side) for side in torch.randint(80, 200, (2,), generator=generator))
    x0 = int(torch.randint(0, width // 2, (1,), generator=generator))
    y0 = int(torch.randint(0, height // 2, (1,), generator=generator))
    x1 = x0 + int(torch.randint(20, width // 2 + 1, (1,), generator=generator))
    y1 = y0 + int(torch.randint(20, height // 2 + 1, (1,), generator=generator))
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    pixels[0, y0:y1, x0:x1] = 255
    return pixels, torch.tensor([[x0 / width, y0 / height, x1 / width, y1 / height]])


def _assert_red_where_said(pixels, box):
    """The red pixels of a transformed picture are those in the box, but for a soft edge of a pixel."""
    sides = torch.tensor(pixels.shape[-2:]).flip(0).repeat(2)
    left, top, right, bottom = (box[0].clamp(0, 1) * sides).tolist()
    inside = pixels[
        0, math.ceil(top + 1) : max(0, int(bottom - 1)), math.ceil(left + 1) : max(0, int(right - 1))
    ]
    assert (inside > 127).all()
    outside = pixels[0].clone()
    outside[max(0, int(top - 1)) : int(bottom) + 2, max(0, int(left - 1)) : int(right) + 2] = 0
    assert (outside < 128).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
def test_evaluation_transforms_show_what_the_box_says(resize_mode, size):
    config = PreprocessConfig(size=size, resize_mode=resize_mode)
    transform = eval_transform(config, torch.uint8)
    generator = torch.Generator().manual_seed(1)
    for _ in range(15):
        pixels, box = _picture(generator)
        result = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
        _assert_red_where_said(result, eval_window(config, tuple(pixels.shape[-2:])).apply(box))


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
@pytest.mark.parametrize(
    ("resize_mode", "augment"),
    [
        ("shortest", AugmentConfig(scale=(0.4, 1.0), horizontal_flip=0.5)),
        ("shortest", AugmentConfig(random_crop=False, horizontal_flip=0.5)),
        ("longest", AugmentConfig(random_crop=False, horizontal_flip=0.5)),
        ("squash", AugmentConfig(random_crop=False, horizontal_flip=0.5)),
    ],
)
def test_training_transforms_show_what_the_box_says(resize_mode, augment, size):
    transform = TrainTransform(PreprocessConfig(size=size, resize_mode=resize_mode), augment)
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(3)
    mirrored = 0
    for _ in range(40):
        pixels, box = _picture(generator)
        state = torch.get_rng_state()
        result, window = transform.with_window(pixels)
        torch.set_rng_state(state)
        assert torch.equal(result, transform(pixels))
        mirrored += window.is_mirrored
        _assert_red_where_said(result, window.apply(box))
    assert 10 < mirrored < 30
