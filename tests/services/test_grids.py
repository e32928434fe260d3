"""Grids through the real services: each cell an image of its own; a stop keeps what is made, resuming adds the rest."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zimage_studio.core.metadata.png import read_own_recipe, read_texts
from zimage_studio.errors import BusyError, Cancelled, UserError
from zimage_studio.records.grid import GridPlan, parse_axis, plan_grid, plan_neighbourhood
from zimage_studio.records.progress import silent
from zimage_studio.records.request import ModelDefaults, Variation, parse_batch
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio, build_studio

BASE = {"prompt": "a red circle on a white background", "seed": 7, "width": 64, "height": 64, "steps": 2, "guidance": 0}


def plan(x: tuple[str, object], y: tuple[str, object] | None = None, **changes: object) -> GridPlan:
    request = parse_batch({**BASE, **changes}, ModelDefaults()).first
    axes = [parse_axis(*axis) if axis else None for axis in (x, y)]
    return plan_grid(request, "tiny", axes[0], axes[1], defaults=ModelDefaults(), parent="f" * 64)


def test_each_cell_is_an_image_with_its_own_recipe(studio: Studio):
    grid = studio.grids.start(plan(("seed", "1,2"), ("steps", "1,3")))
    view = grid.result(120)
    assert (view.done, view.total, view.state) == (4, 4, "done")
    for (column, row), image in view.images.items():
        recipe = read_own_recipe(image.path)
        assert (recipe.request.seed, recipe.request.steps) == ((1, 2)[column], (1, 3)[row])
        assert recipe.parent == "f" * 64
    alone = studio.generation.submit({**BASE, "seed": 2, "steps": 3}, model="tiny").result(60)[0]
    assert alone.recipe.outcome.pixels_sha256 == view.images[1, 1].recipe.outcome.pixels_sha256


def test_a_stop_keeps_what_is_made_and_resuming_makes_only_the_rest(studio: Studio):
    grid = studio.grids.start(plan(("seed", range(6)), steps=4))
    while grid.view.done < 2:
        grid.wait_change(grid.view.version, 30)
    grid.stop()
    with pytest.raises(Cancelled):
        grid.result(60)
    made = {place: image.id for place, image in grid.view.images.items()}
    assert 2 <= len(made) < 6
    before = studio.manager.meter.total
    view = studio.grids.resume(grid.id).result(120)
    assert view.done == 6
    assert studio.manager.meter.total - before == 6 - len(made)
    assert {place: view.images[place].id for place in made} == made


def test_after_a_restart_the_grid_is_still_there_and_goes_on(studio: Studio):
    grid = studio.grids.start(plan(("seed", range(5)), steps=6))
    while grid.view.done < 1:
        grid.wait_change(grid.view.version, 30)
    studio.begin_stop()
    with pytest.raises((Cancelled, BusyError)):
        grid.result(60)
    again = build_studio(studio.settings)
    again.manager.start()
    try:
        found = again.grids.get(grid.id)
        assert found.view.state == "stopped"
        assert found.plan == grid.plan
        assert 1 <= found.view.done < 5
        assert again.grids.resume(grid.id).result(120).done == 5
        assert [known.id for known in again.grids.list()] == [grid.id]
    finally:
        again.close()


def test_a_deleted_cell_is_made_again(studio: Studio):
    grid = studio.grids.start(plan(("seed", "1,2")))
    first = grid.result(60).images[0, 0]
    studio.images.delete(first.id)
    again = build_studio(studio.settings)
    again.manager.start()
    try:
        assert again.grids.get(grid.id).view.done == 1
        remade = again.grids.resume(grid.id).result(60).images[0, 0]
        assert remade.recipe.outcome.pixels_sha256 == first.recipe.outcome.pixels_sha256
    finally:
        again.close()


def test_others_get_their_turn_between_the_cells(studio: Studio):
    grid = studio.grids.start(plan(("seed", range(8)), steps=3))
    while grid.view.done < 1:
        grid.wait_change(grid.view.version, 30)
    studio.generation.submit(BASE, model="tiny", session="somebody").result(60)
    assert not grid.view.finished
    grid.result(120)


def test_one_grid_at_a_time_for_each_visitor(studio: Studio):
    first = studio.grids.start(plan(("seed", range(4))), session="a")
    with pytest.raises(BusyError, match="grid"):
        studio.grids.start(plan(("seed", "1,2")), session="a")
    other = studio.grids.start(plan(("seed", "1,2")), session="b")
    assert first.result(120).done + other.result(120).done == 6


def test_a_cell_that_cannot_be_made_ends_the_grid_with_its_reason(studio: Studio):
    grid = studio.grids.start(plan(("prompt", ["circle", "word " * 900])))
    with pytest.raises(UserError, match="512"):
        grid.result(60)
    assert grid.view.state == "failed"
    assert grid.view.done == 1


def test_an_unknown_grid_is_refused_whatever_it_is_called(studio: Studio):
    for name in ("", "nope", "../images", "0" * 16, "a/b"):
        with pytest.raises(UserError, match="no grid"):
            studio.grids.get(name)


def test_a_neighbourhood_begins_with_the_image_and_can_be_entered(studio: Studio):
    start = studio.generation.submit(BASE, model="tiny").result(60)[0]
    around = plan_neighbourhood(
        start.recipe.request, "tiny", strength=0.3, seed=5, parent=start.recipe.outcome.pixels_sha256
    )
    view = studio.grids.start(around).result(120)
    hashes = {place: image.recipe.outcome.pixels_sha256 for place, image in view.images.items()}
    assert hashes[1, 1] == start.recipe.outcome.pixels_sha256
    assert len(set(hashes.values())) == 9
    chosen = view.images[2, 0]
    deeper = plan_neighbourhood(chosen.recipe.request, "tiny", strength=0.1, seed=9)
    assert deeper.cells[0].request.variations == (chosen.recipe.request.variations[0], Variation(seed=9, strength=0.1))


def test_the_sheet_shows_every_cell_with_its_labels_and_the_plan(studio: Studio, tmp_path: Path):
    grid = studio.grids.start(plan(("seed", "1,2,3"), ("prompt", ["red", "蓝色"])))
    view = grid.result(120)
    path = studio.grids.sheet(grid)
    assert GridPlan.from_json(read_texts(path)["zimage_studio_grid"]) == grid.plan
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    for stored in view.images.values():
        with Image.open(stored.path) as image:
            cell = np.asarray(image.convert("RGB"))
        assert _contains(sheet, cell)
    assert sheet[:20].min() < 100  # labels above
    assert sheet[30:, :20].min() < 100  # and at the left


def test_a_sheet_of_an_unfinished_grid_leaves_room_for_the_rest(studio: Studio):
    grid = studio.grids.start(plan(("seed", range(4)), steps=5))
    while grid.view.done < 1:
        grid.wait_change(grid.view.version, 30)
    grid.stop()
    with pytest.raises(Cancelled):
        grid.result(60)
    with Image.open(studio.grids.sheet(grid)) as image:
        assert image.width > 4 * 64


def test_many_watchers_see_the_same_end(studio: Studio):
    grid = studio.grids.start(plan(("seed", range(3))))
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(grid.result(60).done)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [3] * 4


def _contains(sheet: np.ndarray, cell: np.ndarray) -> bool:
    height, width = cell.shape[:2]
    corner = cell[0, 0]
    for y, x in np.argwhere((sheet[: -height + 1, : -width + 1] == corner).all(2)):
        if np.array_equal(sheet[y : y + height, x : x + width], cell):
            return True
    return False


def test_memory_profiles_are_an_axis_and_a_replay_keeps_them(studio: Studio):
    view = studio.grids.start(plan(("profile", "exact,bf16"), ("seed", "1,2"))).result(120)
    dtypes = [{view.images[column, row].recipe.numerics.dtypes["transformer"] for row in (0, 1)} for column in (0, 1)]
    assert dtypes == [{"float32"}, {"bfloat16"}]
    lossy = view.images[1, 0]
    assert lossy.recipe.numerics.memory["transformer_precision"] == "bf16"
    original = read_original(lossy.path)
    again = studio.replay.start(original, silent, session="x").result(60)[0]
    assert studio.replay.verdict(original, again).verdict == "identical"
    around = plan_neighbourhood(lossy.recipe.request, "tiny", strength=0.2, memory=lossy.recipe.numerics.memory)
    assert {cell.profile["transformer_precision"] for cell in around.cells} == {"bf16"}
    assert GridPlan.from_json(around.to_json()) == around
