"""Pictures with captions to train on: a folder, a folder with metadata.jsonl, webdataset shards, or the drawn world.

Everything that can be seen without decoding is checked before training begins: captions, names, sizes.
"""

import functools
import io
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zimage_studio.core.drawn.captions import caption
from zimage_studio.core.drawn.drawings import render, sample_scene
from zimage_studio.core.start_picture import fitted
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.recover import DRAWN
from zimage_studio.records.strict_json import loads_strict

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
MAX_CAPTION_CHARS = 10_000
ORIENTATION, LYING = 0x0112, 5
"""The EXIF tag, and from which value on a picture is stored lying on its side."""
DRAWN_CAPTIONS = 2
DRAWN_SEED, DRAWN_HELD_OUT_SEED = 4_000_000, 5_000_000

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and what may be said about it. `read(width, height)` gives (height, width, 3).

    `held_out` says that it is for validation, None that this is still to be decided.
    """

    name: str
    captions: tuple[str, ...]
    read: Callable[[int, int], Pixels]
    held_out: bool | None = None


def read_pictures(data_set: str, size: Size, *, drawn: int, held_out: int, seed: int) -> list[Picture]:
    """The pictures of `data_set` in a fixed order, `held_out` of them for validation.

    `size` is (width, height) in px, `drawn` how many pictures the drawn world gives. Where a folder has few pictures,
    an eighth of them is held out; a single picture is trained and validated on. Raises InvalidInputError naming the
    file and the remedy.
    """
    if data_set == DRAWN:
        return _drawn(drawn, seed, held=False) + _drawn(held_out, seed, held=True)
    path = Path(data_set).expanduser()
    pictures = _found(path)
    if not pictures:
        raise _bad("data_empty", path, suffixes=" ".join(SUFFIXES))
    for picture in pictures:
        _check_caption(picture)
    order = random.Random(seed).sample(range(len(pictures)), len(pictures))
    kept = set(order[: min(held_out, max(1, len(pictures) // 8))]) if len(pictures) > 1 else set()
    return [
        Picture(picture.name, picture.captions, picture.read, index in kept if kept else None)
        for index, picture in enumerate(pictures)
    ]


def check_sizes(pictures: list[Picture], size: Size) -> None:
    """Open every picture's header. Raises InvalidInputError naming one that is no picture or too small."""
    for picture in pictures:
        if isinstance(picture.read, _Stored):
            picture.read.check(*size)


def _found(path: Path) -> list[Picture]:
    if path.is_file() and path.suffix == ".tar":
        return list(_shard(path))
    if not path.is_dir():
        raise _bad("data_unknown", path)
    if (path / METADATA).is_file():
        return list(_listed(path))
    shards = sorted(path.glob("*.tar"))
    images = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not _hidden(file, path))
    if shards and not images:
        return [picture for shard in shards for picture in _shard(shard)]
    return [_beside(file) for file in images]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _bad(key: str, value: object, **values: object) -> InvalidInputError:
    return InvalidInputError(key, field="data_set", value=str(value), **values)


def _check_caption(picture: Picture) -> None:
    for said in picture.captions:
        if not said.strip():
            raise _bad("data_no_caption", picture.name)
        if len(said) > MAX_CAPTION_CHARS:
            raise _bad("data_long_caption", picture.name, count=len(said), high=MAX_CAPTION_CHARS)


# --- pictures in files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    """A picture in a file, or in a part of one: `length` bytes from `start` (0: all of it)."""

    name: str
    path: Path
    start: int = 0
    length: int = 0

    def __call__(self, width: int, height: int) -> Pixels:
        with self._opened() as image:
            pixels = np.asarray(_flat(ImageOps.exif_transpose(image)))
        return fitted(pixels, width, height)

    def check(self, width: int, height: int) -> None:
        """Whether it is a picture, and large enough."""
        with self._opened() as image:
            found = image.size
            if image.getexif().get(ORIENTATION, 1) >= LYING:
                found = (found[1], found[0])
        if found[0] < width or found[1] < height:
            raise _bad("data_small", self.name, found=f"{found[0]}×{found[1]}", size=f"{width}×{height}")

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        try:
            with Image.open(io.BytesIO(self._bytes())) as image:
                yield image
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            why = "no picture" if isinstance(error, UnidentifiedImageError) else error
            raise _bad("data_corrupt", self.name, why=why) from error

    def _bytes(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length or -1)


def _flat(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _beside(file: Path) -> Picture:
    """A picture with its caption in a text file of the same name."""
    text = file.with_suffix(".txt")
    if not text.is_file():
        raise _bad("data_no_caption", file)
    return Picture(str(file), (_decoded(text, text.read_bytes()),), _Stored(str(file), file))


def _decoded(name: object, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _bad("data_not_text", name) from error


def _listed(root: Path) -> Iterator[Picture]:
    """As datasets' imagefolder has it: one JSON object a line, with `file_name` and the caption as `text`."""
    for number, line in enumerate(_decoded(METADATA, (root / METADATA).read_bytes()).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{METADATA}:{number}"
        try:
            row = loads_strict(line)
        except ValueError as error:
            raise _bad("data_bad_line", where, why=error) from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise _bad("data_bad_line", where, why="file_name?")
        name = PurePosixPath(str(row["file_name"]))
        if name.is_absolute() or ".." in name.parts:
            raise _bad("data_outside", where, file=name)
        file = root / name
        if not file.is_file():
            raise _bad("data_missing", where, file=name)
        yield Picture(str(file), (_said(row, where),), _Stored(str(file), file))


def _said(row: Mapping[str, object], where: str) -> str:
    said = next((row[key] for key in CAPTION_KEYS if key in row), None)
    if not isinstance(said, str) or not said.strip():
        raise _bad("data_no_caption_key", where, known=", ".join(CAPTION_KEYS))
    return said.strip()


def _shard(path: Path) -> Iterator[Picture]:
    """A webdataset shard: files of one key belong together. Read in place; nothing is unpacked."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, file = member.name.rpartition("/")
                    key, _, suffix = file.partition(".")
                    samples.setdefault(f"{folder}/{key}", {})[suffix.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise _bad("data_corrupt", path, why=error) from error
    for key, parts in samples.items():
        yield _from_shard(path, f"{path}:{key.removeprefix('/')}", parts)


def _from_shard(path: Path, name: str, parts: Mapping[str, tuple[int, int]]) -> Picture:
    image = next((parts[s] for s in parts if f".{s}" in SUFFIXES), None)
    if image is None:
        raise _bad("data_no_picture", name, suffixes=" ".join(SUFFIXES))
    said = ""
    with path.open("rb") as file:
        for suffix in ("txt", "text", "caption", "json"):
            if suffix in parts and not said:
                file.seek(parts[suffix][0])
                content = _decoded(name, file.read(parts[suffix][1]))
                said = _from_json(content, name) if suffix == "json" else content
    if not said:
        raise _bad("data_no_caption", name)
    return Picture(name, (said,), _Stored(name, path, *image))


def _from_json(content: str, name: str) -> str:
    try:
        row = loads_strict(content)
    except ValueError as error:
        raise _bad("data_bad_line", name, why=error) from error
    return _said(row if isinstance(row, dict) else {}, name)


# --- the drawn world ------------------------------------------------------------------------------------------------


def _drawn(count: int, seed: int, *, held: bool) -> list[Picture]:
    rng = random.Random((DRAWN_HELD_OUT_SEED if held else DRAWN_SEED) + seed)
    pictures = []
    for index in range(count):
        scene = sample_scene(rng, held_out=held)
        said = tuple(caption(scene, rng) for _ in range(1 if held else DRAWN_CAPTIONS))
        name = f"{DRAWN}-{'held-' if held else ''}{index:06d}"
        pictures.append(Picture(name, said, functools.partial(render, scene), held))
    return pictures
