"""The image store: PNG files that carry their recipe, a row each in SQLite, thumbnails on demand."""

import io
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zimage_studio.core.metadata.png import read_own_recipe, write_png
from zimage_studio.errors import InvalidInputError, StorageError, UserError
from zimage_studio.records.checks import whole
from zimage_studio.records.recipe import Recipe
from zimage_studio.services.files import replace_durably, sweep_temporaries

THUMBNAIL_PX = 320
MAX_PAGE_ROWS = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    id TEXT PRIMARY KEY, created TEXT NOT NULL, job TEXT NOT NULL, prompt TEXT NOT NULL, pixels_sha256 TEXT NOT NULL,
    model_sha256 TEXT NOT NULL, parent TEXT, file TEXT NOT NULL, recipe TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS images_created ON images (created DESC, id DESC);
CREATE INDEX IF NOT EXISTS images_job ON images (job);
CREATE INDEX IF NOT EXISTS images_pixels ON images (pixels_sha256);
CREATE INDEX IF NOT EXISTS images_parent ON images (parent);
"""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One saved image: its id, the PNG and its recipe."""

    id: str
    path: Path
    recipe: Recipe


class ImageStore:
    """Saves images whole or not at all. Safe to use from several threads."""

    def __init__(self, folder: Path, *, reserve_mb: int = 200) -> None:
        self._folder = folder
        self._reserve_mb = reserve_mb
        self._thumbnails = folder / "thumbnails"
        self._database = folder / "images.sqlite"
        self._write_lock = threading.Lock()
        try:
            self._thumbnails.mkdir(parents=True, exist_ok=True)
            with self._connect() as connection:
                connection.executescript(_SCHEMA)
            self._anchor = self._opened()
        except (OSError, sqlite3.OperationalError) as error:
            raise StorageError("cannot_write", folder=folder, why=error) from error
        self._sweep()

    def close(self) -> None:
        """The last use: fold SQLite's log into the database. Idempotent."""
        self._anchor.close()

    def check_space(self) -> None:
        """Raise StorageError when the disk has less than the reserve."""
        free_mb = shutil.disk_usage(self._folder).free // 2**20
        if free_mb < self._reserve_mb:
            raise StorageError("disk_full", folder=self._folder, free_mb=free_mb, need_mb=self._reserve_mb)

    def add(self, pixels_HWC: NDArray[np.uint8], recipe: Recipe) -> StoredImage:
        """Save pixels and recipe: file first, then its row; a file without a row is taken up at the next start."""
        now = datetime.now(UTC)
        image_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        path = self._folder / f"{now:%Y-%m}" / f"{image_id}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            replace_durably(path, write_png(pixels_HWC, recipe))
            stored = StoredImage(image_id, path, recipe)
            self._insert(stored)
        except (OSError, sqlite3.OperationalError) as error:
            raise StorageError("cannot_write", folder=self._folder, why=error) from error
        return stored

    def get(self, image_id: str) -> StoredImage:
        """The image `image_id`. Raises UserError when there is none."""
        rows = self._select("WHERE id = ?", (image_id,))
        if not rows:
            raise UserError("unknown_image", value=image_id)
        return rows[0]

    def of_job(self, job: str) -> tuple[StoredImage, ...]:
        """The images of one job, in the order of their seeds."""
        return tuple(sorted(self._select("WHERE job = ?", (job,)), key=lambda stored: stored.recipe.index))

    def with_pixels(self, sha256: str) -> tuple[StoredImage, ...]:
        """The images with these very pixels, oldest first."""
        return tuple(self._select("WHERE pixels_sha256 = ? ORDER BY created, id", (sha256,)))

    def made_from(self, sha256: str) -> tuple[StoredImage, ...]:
        """The images whose recipe names an image with these pixels as its parent, oldest first."""
        return tuple(self._select("WHERE parent = ? ORDER BY created, id", (sha256,)))

    def page(self, *, search: object = "", page: object = 1, rows: object = 24) -> tuple[tuple[StoredImage, ...], int]:
        """Newest first: the rows of one page (counted from 1), and how many images match in all.

        `search` is matched literally (no wildcards), ignoring ASCII case, anywhere in the prompt.
        """
        number = whole("page", page, 1, 10**9)
        size = whole("count", rows, 1, MAX_PAGE_ROWS)
        if not isinstance(search, str):
            raise InvalidInputError("bad_text", field="prompt", value=repr(search))
        where: str = ""
        values: tuple[str, ...] = ()
        if search.strip():
            escaped = search.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            where, values = "WHERE prompt LIKE ? ESCAPE '\\'", (f"%{escaped}%",)
        with self._connect() as connection:
            total = connection.execute(f"SELECT COUNT(*) FROM images {where}", values).fetchone()[0]  # noqa: S608 - fixed texts
        tail = f"{where} ORDER BY created DESC, id DESC LIMIT ? OFFSET ?"
        return tuple(self._select(tail, (*values, size, (number - 1) * size))), total

    def delete(self, image_id: str) -> None:
        """Delete the file, its thumbnail and its row. Raises UserError when there is no such image."""
        stored = self.get(image_id)
        stored.path.unlink(missing_ok=True)
        (self._thumbnails / f"{stored.id}.webp").unlink(missing_ok=True)
        with self._write_lock, self._connect() as connection:
            connection.execute("DELETE FROM images WHERE id = ?", (image_id,))

    def thumbnail(self, stored: StoredImage) -> Path:
        """A WebP of at most 320 px a side, made on first use."""
        path = self._thumbnails / f"{stored.id}.webp"
        if not path.exists():
            with Image.open(stored.path) as image:
                image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "WEBP", quality=85)
            replace_durably(path, buffer.getvalue())
        return path

    def _insert(self, stored: StoredImage) -> None:
        recipe = stored.recipe
        row = (
            stored.id, recipe.created, recipe.job, recipe.request.prompt, recipe.outcome.pixels_sha256,
            recipe.model.sha256, recipe.parent, str(stored.path.relative_to(self._folder)), recipe.to_json(),
        )  # fmt: skip
        with self._write_lock, self._connect() as connection:
            connection.execute("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?,?,?)", row)

    def _select(self, tail: str, values: tuple[object, ...]) -> list[StoredImage]:
        with self._connect() as connection:
            rows = connection.execute(f"SELECT id, file, recipe FROM images {tail}", values).fetchall()  # noqa: S608
        return [StoredImage(row[0], self._folder / row[1], Recipe.from_json(row[2])) for row in rows]

    def _opened(self) -> sqlite3.Connection:
        """A connection. The first is the anchor: SQLite folds its log into the database whenever the last connection
        closes, and without the anchor each image would pay three more flushes to the disk for it."""
        connection = sqlite3.connect(self._database, timeout=10, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = self._opened()
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def _sweep(self) -> None:
        """After a crash: remove half-written files, take up files without a row, drop rows without a file."""
        sweep_temporaries(self._folder)
        with self._connect() as connection:
            known = dict(connection.execute("SELECT file, id FROM images").fetchall())
        on_disk = {str(path.relative_to(self._folder)): path for path in self._folder.glob("????-??/*.png")}
        for name in on_disk.keys() - known.keys():
            if recipe := read_own_recipe(on_disk[name]):
                self._insert(StoredImage(on_disk[name].stem, on_disk[name], recipe))
        lost = [(known[name],) for name in known.keys() - on_disk.keys()]
        with self._write_lock, self._connect() as connection:
            connection.executemany("DELETE FROM images WHERE id = ?", lost)
