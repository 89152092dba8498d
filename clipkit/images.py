"""Bytes of an image file -> RGB pixels, the same whichever decoder reads them.

Pixels are what a viewer shows on a white page: transparency is composited on white, 16-bit grey is scaled
(not clipped) to 8 bit, CMYK is converted, and of an animation the first frame is taken. As in the other tools
of the field the EXIF orientation is *not* applied and no colour profile is. Anything damaged is refused with
an `ImageError`; no picture is ever completed with grey.
"""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (the size at which Pillow starts to warn)."""

EMPTY_FILE = "empty file"
NOT_AN_IMAGE = "not an image"
CORRUPT_IMAGE = "corrupt image"
DECOMPRESSION_BOMB = "decompression bomb"
UNSUPPORTED_PIXELS = "unsupported pixel format"
IMAGE_REASONS = (EMPTY_FILE, NOT_AN_IMAGE, CORRUPT_IMAGE, DECOMPRESSION_BOMB, UNSUPPORTED_PIXELS)

# Formats whose readers are pure decoders: the list keeps out EPS and WMF, which start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


class ImageError(ValueError):
    """An image that cannot be used; `reason` is one of `IMAGE_REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a whole image file to a Pillow image of mode RGB.

    Args:
        data: content of a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF or JPEG 2000 file.
        max_pixels: width times height above which the image is refused undecoded.

    Raises:
        ImageError: empty, not an image, damaged or cut short, too large, or of floating-point or 32-bit
            integer pixels (whose range the file does not say).
    """
    if not data:
        raise ImageError(EMPTY_FILE)
    with warnings.catch_warnings():
        # Pillow warns about large images and odd metadata; the first is an error here, the second harmless.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_formats())
            _check_size(image.width, image.height, max_pixels)
            return _to_rgb(image)
        except (ImageError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(DECOMPRESSION_BOMB, str(error)) from error
        except UnidentifiedImageError as error:
            is_damaged = data.startswith(_MAGIC)
            raise ImageError(CORRUPT_IMAGE if is_damaged else NOT_AN_IMAGE) from error
        except Exception as error:  # damaged files raise whatever a format's reader trips over
            raise ImageError(CORRUPT_IMAGE, f"{error}") from error


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file in pixels, read from its head alone.

    Raises:
        ImageError: it is empty, or no image.
    """
    if not data:
        raise ImageError(EMPTY_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                return image.height, image.width
        except Exception as error:  # as in `decode_image`
            is_damaged = data.startswith(_MAGIC)
            raise ImageError(CORRUPT_IMAGE if is_damaged else NOT_AN_IMAGE, f"{error}") from error


def decode_pixels(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a whole image file to RGB pixels; grey and colour JPEGs take a path without Pillow, 3 x as fast.

    Args:
        data: content of an image file, as for `decode_image`.
        max_pixels: width times height above which the image is refused undecoded.

    Returns:
        uint8 (3, H, W), equal to the pixels of `decode_image`.

    Raises:
        ImageError: as `decode_image`.
    """
    rgb = _decode_jpeg(data, max_pixels) if data.startswith(b"\xff\xd8\xff") else None
    if rgb is None:
        rgb = np.array(decode_image(data, max_pixels=max_pixels))
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _decode_jpeg(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """(H, W, 3) pixels of a sound 8-bit grey or colour JPEG, None for all that Pillow is to judge."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        if colour_space not in ("Gray", "YCbCr", "RGB"):
            return None
        _check_size(width, height, max_pixels)
        rgb: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
        return rgb
    except ImageError:
        raise
    except ValueError:
        return None


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats above that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(DECOMPRESSION_BOMB, f"{width} x {height} pixels, at most {max_pixels} are decoded")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _scale_16_bit(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ImageError(UNSUPPORTED_PIXELS, f"mode {image.mode} has no stated range; save it as 8 or 16 bit")
    image.load()
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((grey + 128) // 257).clip(max=255).astype(np.uint8)).convert("RGB")
