from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from clipkit.zeroshot.tasks.cropped_files import CroppedFiles, ImagePart
from PIL import Image

from clipkit.data.problems import SampleError
from clipkit.images import decode_image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_crop_has_exactly_the_pixels_of_its_box(picture: Path) -> None:
    source = CroppedFiles(
        [ImagePart(picture, (4, 5, 10, 7)), ImagePart(picture), ImagePart(picture, (0.6, 0, 3, 4))]
    )
    assert len(source) == 3
    whole = np.array(Image.open(picture))
    np.testing.assert_array_equal(np.array(decode_image(source.read(0).image)), whole[5:12, 4:14])
    assert source.read(1).image == picture.read_bytes()
    np.testing.assert_array_equal(np.array(decode_image(source.read(2).image)), whole[0:4, 1:4])
    keys = [source.read(i).key for i in range(3)]
    assert keys == [f"{picture}#4,5,10,7", str(picture), f"{picture}#0.6,0,3,4"]
    assert [source.where(i) for i in range(3)] == keys


def test_a_box_over_the_edge_is_black_there_as_in_pillow(picture: Path) -> None:
    cut = np.array(decode_image(CroppedFiles([ImagePart(picture, (25, 15, 10, 10))]).read(0).image))
    assert cut.shape == (10, 10, 3)
    np.testing.assert_array_equal(cut, np.array(Image.open(picture).crop((25, 15, 35, 25))))
    assert (cut[5:] == 0).all()


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (30, 0, 5, 5), (-8, 0, 8, 5), (0, 0, 5, -1)])
def test_a_box_without_pixels_is_unusable(picture: Path, box: tuple[float, float, float, float]) -> None:
    with pytest.raises(SampleError, match="covers none of its 30 x 20 pixels"):
        CroppedFiles([ImagePart(picture, box)]).read(0)


def test_unreadable_files_are_unusable(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    source = CroppedFiles([ImagePart(tmp_path / name, (0, 0, 2, 2)) for name in ("b.png", "missing.png")])
    for index, reason in enumerate(("not an image", "missing file")):
        with pytest.raises(SampleError) as caught:
            source.read(index)
        assert caught.value.reason == reason


def test_a_grey_image_is_cropped_too(tmp_path: Path) -> None:
    Image.new("L", (6, 6), 90).save(tmp_path / "g.png")
    cut = CroppedFiles([ImagePart(tmp_path / "g.png", (1, 1, 2, 3))]).read(0).image
    image = Image.open(io.BytesIO(cut))
    assert (image.size, image.mode, image.getpixel((0, 0))) == ((2, 3), "RGB", (90, 90, 90))
