"""Pictures that images start from: found again by the hash of their pixels, whatever file they came in."""

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zimage_studio.errors import UserError
from zimage_studio.services.files import replace_durably
from zimage_studio.services.images import THUMBNAIL_PX, ImageStore

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_SOURCE_PIXELS = 8192 * 8192
MAX_SOURCE_BYTES = 64 * 2**20
SHOWN_DIGITS = 16


class SourceStore:
    """Keeps what was handed in as `<sha256 of the RGB bytes>.png`, and finds images of the history by the same hash."""

    def __init__(self, folder: Path, images: ImageStore) -> None:
        self._folder = folder
        self._images = images

    def keep(self, path: Path, *, name: str | None = None) -> str:
        """Take over the picture at `path`; returns the hash of its pixels.

        Transparency is laid on white and the camera's orientation is applied. Raises UserError when it is no PNG,
        JPEG or WebP, or too large.
        """
        pixels_HWC = read_pixels(path, name=name)
        sha256 = hashlib.sha256(pixels_HWC.tobytes()).hexdigest()
        if self._find(sha256) is None:
            self._images.check_space()
            buffer = io.BytesIO()
            Image.fromarray(pixels_HWC).save(buffer, "PNG")
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_durably(self._folder / f"{sha256}.png", buffer.getvalue())
        return sha256

    def path(self, sha256: str) -> Path:
        """A file with these pixels. Raises UserError naming the hash when there is none."""
        found = self._find(sha256)
        if found is None:
            raise UserError("source_missing", value=sha256[:SHOWN_DIGITS])
        return found

    def pixels(self, sha256: str) -> NDArray[np.uint8]:
        """(H, W, 3). Raises UserError when the picture is not here, or its file was changed since."""
        pixels_HWC = read_pixels(self.path(sha256))
        if hashlib.sha256(pixels_HWC.tobytes()).hexdigest() != sha256:
            raise UserError("source_missing", value=sha256[:SHOWN_DIGITS])
        return pixels_HWC

    def thumbnail(self, sha256: str) -> Path:
        """A WebP of at most 320 px a side, made on first use. Raises UserError when the picture is not here."""
        path = self._folder / f"{sha256}.webp"
        if not path.exists():
            with Image.open(self.path(sha256), formats=FORMATS) as image:
                image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "WEBP", quality=85)
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_durably(path, buffer.getvalue())
        return path

    def _find(self, sha256: str) -> Path | None:
        kept = self._folder / f"{sha256}.png"
        if kept.exists():
            return kept
        return next((image.path for image in self._images.with_pixels(sha256) if image.path.exists()), None)


def read_pixels(path: Path, *, name: str | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) of a PNG, JPEG or WebP file. Raises UserError; nothing is decoded before its size is known."""
    shown = name or path.name
    try:
        size = path.stat().st_size
        if size > MAX_SOURCE_BYTES:
            raise UserError("file_too_large", value=shown, mb=size // 2**20, high=MAX_SOURCE_BYTES // 2**20)
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_SOURCE_PIXELS:
                raise UserError(
                    "too_many_pixels", width=image.width, height=image.height, pixels=image.width * image.height,
                    high=MAX_SOURCE_PIXELS,
                )  # fmt: skip
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise UserError("not_picture", value=shown) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("file_damaged", value=shown, why=error) from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))
