"""Images are saved whole or not at all, found again, and never matched by anything but what was typed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zimage_studio.core.metadata.png import read_own_recipe
from zimage_studio.errors import InvalidInputError, StorageError, UserError
from zimage_studio.records.recipe import ModelIdentity, Numerics, Outcome, Recipe
from zimage_studio.records.request import GenerationRequest
from zimage_studio.services.images import ImageStore

ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
KILL_CYCLES = 12


def recipe(prompt: str = "a red circle", seed: int = 1) -> Recipe:
    return Recipe(
        request=GenerationRequest(prompt=prompt, seed=seed, width=96, height=64, steps=1, guidance=0),
        model=ModelIdentity(key="k", name="n", sha256="0" * 64),
        numerics=Numerics(
            device="cpu",
            dtypes={},
            attention_backend="native",
            memory={},
            scheduler={},
            sigmas=(1.0, 0.0),
            sequence_length=64,
        ),
        stack={},
        outcome=Outcome(pixels_sha256="1" * 64, latents_sha256="2" * 64, seconds=0.1),
        created="2026-01-01T00:00:00.000+00:00",
        job="j",
    )


@pytest.fixture
def store(tmp_path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def test_what_is_added_is_found_with_its_pixels_and_recipe(store):
    stored = store.add(PIXELS, recipe())
    assert store.get(stored.id) == stored
    assert read_own_recipe(stored.path) == recipe()
    with Image.open(stored.path) as image:
        assert np.array_equal(np.asarray(image), PIXELS)


def test_pages_are_newest_first_and_count_everything(store):
    ids = [store.add(PIXELS, replace(recipe(seed=n), created=f"2026-01-0{n}")).id for n in (1, 2, 3)]
    rows, total = store.page(page=1, rows=2)
    assert [row.id for row in rows] == ids[:0:-1]
    assert total == 3
    assert [row.id for row in store.page(page=2, rows=2)[0]] == ids[:1]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("100%", ["100% wool"]),
        ("a_b", ["a_b"]),
        ("%", ["100% wool"]),
        ("' OR 1=1 --", []),
        ("红色", ["红色圆形"]),
        ("WOOL", ["100% wool"]),
    ],
)
def test_a_search_is_literal(store, typed, found):
    for prompt in ("100% wool", "a_b", "axb", "红色圆形"):
        store.add(PIXELS, recipe(prompt))
    assert [row.recipe.request.prompt for row in store.page(search=typed)[0]] == found


@pytest.mark.parametrize("values", [{"page": 0}, {"page": -1}, {"rows": 10**9}, {"page": "a"}, {"search": 5}])
def test_a_bad_page_is_refused_by_name(store, values):
    with pytest.raises(InvalidInputError):
        store.page(**values)


def test_deleting_removes_file_thumbnail_and_row(store):
    stored = store.add(PIXELS, recipe())
    thumbnail = store.thumbnail(stored)
    assert thumbnail.is_file()
    store.delete(stored.id)
    assert not stored.path.exists() and not thumbnail.exists()
    for action in (store.get, store.delete):
        with pytest.raises(UserError, match="no image"):
            action(stored.id)


@pytest.mark.parametrize("wrong", ["../../etc/passwd", "", "'; DROP TABLE images; --", "x" * 10_000])
def test_an_id_is_never_a_path(store, wrong):
    with pytest.raises(UserError, match="no image"):
        store.get(wrong)


def test_a_file_without_a_row_is_taken_up_and_a_row_without_a_file_dropped(tmp_path):
    store = ImageStore(tmp_path)
    kept, lost = store.add(PIXELS, recipe("kept")), store.add(PIXELS, recipe("lost"))
    lost.path.unlink()
    with sqlite3.connect(tmp_path / "images.sqlite") as connection:
        connection.execute("DELETE FROM images WHERE id = ?", (kept.id,))
    connection.close()
    rows, total = ImageStore(tmp_path).page()
    assert (total, rows[0].id, rows[0].recipe.request.prompt) == (1, kept.id, "kept")


def test_a_full_disk_is_refused_with_the_figures(tmp_path):
    store = ImageStore(tmp_path, reserve_mb=10**9)
    with pytest.raises(StorageError, match=r"MB free; at least 1000000000 MB"):
        store.check_space()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        ImageStore(tmp_path / "images")


WRITER = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.services.test_images import PIXELS, recipe
from zimage_studio.services.images import ImageStore
store = ImageStore(Path(sys.argv[1]))
while True:
    print(store.add(PIXELS, recipe()).id, flush=True)
"""


def test_kill_9_while_saving_loses_no_acknowledged_image_and_tears_none(tmp_path):
    acknowledged: set[str] = set()
    for cycle in range(KILL_CYCLES):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(ROOT)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        assert writer.stdout is not None
        acknowledged.add(writer.stdout.readline().strip())
        time.sleep(0.01 * cycle)
        writer.send_signal(signal.SIGKILL)
        acknowledged |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        writer.wait()
    store = ImageStore(tmp_path)
    assert not list(tmp_path.glob("**/*.tmp"))
    rows = [row for page in range(1, 100) for row in store.page(page=page, rows=200)[0]]
    assert acknowledged <= {row.id for row in rows}
    for row in rows:
        with Image.open(row.path) as image:
            image.load()
        assert read_own_recipe(row.path) is not None
