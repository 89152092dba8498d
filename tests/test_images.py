import io
import random
import warnings

import numpy as np
import pytest
import torch
from broken_shards import encode, good_images, jpeg_with_size, photo, png, png_header_only
from PIL import Image

from clipkit import images
from clipkit.images import ImageError, decode_image, decode_pixels


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def reason_of(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as by_pillow:
        decode_image(data, **options)
    with pytest.raises(ImageError) as by_pixels:
        decode_pixels(data, **options)
    assert by_pillow.value.reason == by_pixels.value.reason
    assert by_pillow.value.reason in images.IMAGE_REASONS
    return by_pillow.value.reason


@pytest.mark.parametrize("name", good_images())
def test_both_decoders_agree_on_every_kind(name):
    data = good_images()[name][1]
    image, pixels = decode_image(data), decode_pixels(data)
    assert image.mode == "RGB"
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 20, 24)
    assert torch.equal(pixels, pixels_of(image))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"quality": 5},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
)
def test_jpegs_equal_plain_pillow(options):
    data = encode(photo(5, (61, 43)), **options)
    assert torch.equal(decode_pixels(data), pixels_of(Image.open(io.BytesIO(data)).convert("RGB")))


def test_transparency_is_composited_on_white():
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([(255, 0, 0, 255), (0, 0, 0, 128)])
    red, grey = pixels_of(decode_image(encode(rgba, "PNG")))[:, 0].T.tolist()
    assert red == [255, 0, 0]
    assert grey == [127, 127, 127]  # half black over white

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    clear, opaque = pixels_of(decode_image(encode(palette, "PNG", transparency=0)))[:, 0].T.tolist()
    assert clear == [255, 255, 255]
    assert opaque == [40, 50, 60]


def test_opaque_alpha_changes_nothing():
    rgb = photo(7)
    rgba = rgb.copy()
    rgba.putalpha(255)
    assert decode_image(encode(rgba, "PNG")).tobytes() == rgb.tobytes()


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    row = pixels_of(decode_image(encode(Image.fromarray(values), "PNG")))[0, 0].tolist()
    assert row == [0, 0, 1, 1, 128, 255]  # round(value / 257)


def test_16_bit_rgb_png():
    cells = np.array([[[0, 32768, 65535]]], dtype=">u2")
    data = png(1, 1, b"\0" + cells.tobytes(), bits=16)
    assert decode_pixels(data).flatten().tolist() == [0, 128, 255]


def test_adobe_cmyk_jpeg_is_not_inverted():
    white = encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)))
    assert decode_pixels(white).min() > 250
    cyan = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)))
    assert decode_pixels(cyan)[:, 8, 8].tolist() == pytest.approx([0, 255, 255], abs=3)


def test_floating_point_tiff_is_refused():
    assert reason_of(encode(Image.new("F", (4, 4), 0.5), "TIFF")) == images.UNSUPPORTED_PIXELS


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_pixels(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_pixels(encode(photo(1, (30, 10)), exif=exif)).shape == (3, 10, 30)


def test_every_cut_of_a_file_is_refused():
    for file_format, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})):
        data = encode(photo(4, (40, 40)), file_format, **options)
        end = len(data) - (12 if file_format == "PNG" else 0)  # pixels are whole without PNG's last chunk
        for length in range(20, end, 31):
            assert reason_of(data[:length]) == images.CORRUPT_IMAGE, (file_format, length)
    assert reason_of(encode(photo(4))[:-1]) == images.CORRUPT_IMAGE


def test_damaged_bytes_never_divide_the_decoders():
    chance = random.Random(0)
    outcomes = []
    for _ in range(200):
        data = bytearray(encode(photo(4, (48, 40)), quality=90))
        for _ in range(3):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            expected = pixels_of(decode_image(bytes(data)))
        except ImageError:
            reason_of(bytes(data))
            outcomes.append(False)
        else:
            assert torch.equal(decode_pixels(bytes(data)), expected)
            outcomes.append(True)
    assert {True, False} == set(outcomes)


@pytest.mark.parametrize(
    "data", [png_header_only(30_000, 30_000), png_header_only(9_460, 9_460), jpeg_with_size(9_460, 9_460)]
)
def test_bombs_are_refused_by_their_header_without_a_warning(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(data) == images.DECOMPRESSION_BOMB


def test_pixel_limit_is_an_argument():
    data = encode(photo(0))  # 24 x 20
    assert decode_pixels(data, max_pixels=480).shape == (3, 20, 24)
    assert reason_of(data, max_pixels=479) == images.DECOMPRESSION_BOMB


def test_other_reasons():
    assert reason_of(b"") == images.EMPTY_FILE
    assert reason_of(b"<html></html>") == images.NOT_AN_IMAGE
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == images.NOT_AN_IMAGE
    assert reason_of(b"\xff\xd8\xff" + bytes(100)) == images.CORRUPT_IMAGE
