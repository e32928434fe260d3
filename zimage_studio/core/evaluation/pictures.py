"""The pictures of an evaluation while it runs: kept one by one, so that a stop or a crash loses at most one."""

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from zimage_studio.records.report import COLUMNS, Column

KEY = "evaluation.json"
FACTS = "facts.json"


class PictureStore:
    """PNGs by column and number in one folder. `key` says what they are pictures of; others are removed."""

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self._folder = folder
        if self._load(folder / KEY) != json.loads(json.dumps(dict(key))):
            for column in COLUMNS:
                shutil.rmtree(folder / column, ignore_errors=True)
            self._write(folder / KEY, json.dumps(dict(key), ensure_ascii=False).encode())

    def path(self, column: Column, index: int) -> Path:
        """Where picture `index` of `column` lies, or will."""
        return self._folder / column / f"{index:04d}.png"

    def read(self, column: Column, index: int) -> NDArray[np.uint8] | None:
        """Its pixels (H, W, 3), or None where it was not drawn yet or cannot be read."""
        try:
            with Image.open(self.path(column, index)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError):
            return None

    def keep(self, column: Column, index: int, pixels_HWC: NDArray[np.uint8]) -> None:
        """Write it whole or not at all."""
        path = self.path(column, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            Image.fromarray(pixels_HWC).save(beside, format="PNG")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def facts(self, column: Column) -> dict[str, float] | None:
        """What else was measured of `column`."""
        return self._load(self._folder / column / FACTS)

    def keep_facts(self, column: Column, facts: Mapping[str, float]) -> None:
        """Remember what was measured of `column`."""
        self._write(self._folder / column / FACTS, json.dumps(dict(facts)).encode())

    @staticmethod
    def _load(path: Path) -> dict[str, float] | None:
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
