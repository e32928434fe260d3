"""Variations, grids and start pictures through the API: typed data out, our sentences for what is refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.ui.conftest import Served
from tests.ui.test_api import raw
from zimage_studio.core.metadata.png import read_own_recipe, read_texts
from zimage_studio.records.grid import FIELDS, GridPlan
from zimage_studio.services.sources import read_pixels
from zimage_studio.ui.api import refine as api_refine

SMALL = {"width": 64, "height": 64, "steps": 2, "guidance": 0.0}
LIMIT_S = 60


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


@pytest.fixture(scope="module")
def made(client: Client, served: Served) -> dict[str, Any]:
    """One image, as /generate_image answers it, with its file."""
    return generate(client, served, "a red fish", seed="11")


def generate(client: Client, served: Served, prompt: str, **values: Any) -> dict[str, Any]:
    files, facts = client.predict(prompt, **{**SMALL, "model": served.model, **values}, api_name="/generate_image")
    return {**facts[0], "file": files[0]}


def finished(client: Client, status: dict[str, Any]) -> dict[str, Any]:
    """What /grid_status says when the grid has ended."""
    deadline = time.monotonic() + LIMIT_S
    while status["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
        status, _ = client.predict(status["grid"], api_name="/grid_status")
    return status


def test_a_variation_keeps_its_seed_and_turns_the_noise(client: Client, served: Served, made: dict[str, Any]):
    turned = generate(client, served, "a red fish", seed="11", variation_seed="5", variation_strength=0.3)
    assert turned["recipe"]["request"]["variations"] == [{"seed": 5, "strength": 0.3}]
    assert turned["seed"] == "11"
    assert turned["pixels_sha256"] != made["pixels_sha256"]
    still = generate(client, served, "a red fish", seed="11", variation_seed="5", variation_strength=0)
    assert still["pixels_sha256"] == made["pixels_sha256"]


def test_variety_and_parent_are_in_the_recipe(client: Client, served: Served, made: dict[str, Any]):
    child = generate(client, served, "a red fish", seed="11", variety=0.5, parent=made["id"])
    assert child["recipe"]["request"]["variety"] == 0.5
    assert child["recipe"]["parent"] == made["pixels_sha256"]
    assert child["id"] in {image.id for image in served.studio.images.made_from(made["pixels_sha256"])}


def test_an_uploaded_picture_is_drawn_over(client: Client, served: Served, tmp_path: Path):
    path = tmp_path / "photo.jpg"
    Image.effect_mandelbrot((90, 70), (-3, -2.5, 2, 2.5), 60).convert("RGB").save(path, quality=90)
    over = generate(client, served, "a photograph", seed="3", image=handle_file(str(path)), strength=0.5)
    recipe = read_own_recipe(Path(over["file"]))
    assert recipe is not None
    assert recipe.request.strength == 0.5
    assert recipe.request.source == recipe.parent
    assert served.studio.sources.pixels(str(recipe.request.source)).shape == (70, 90, 3)
    assert (served.studio.sources.pixels(str(recipe.request.source)) == read_pixels(path)).all()


def test_a_grid_is_started_watched_and_has_a_sheet(client: Client, served: Served, made: dict[str, Any]):
    started = client.predict("seed", "11, 12", "steps", "1, 2", made["id"], api_name="/grid")
    assert (started["state"], started["total"]) == ("running", 4)
    status = finished(client, started)
    assert (status["state"], status["done"], status["error"]) == ("done", 4, "")
    assert (status["x"], status["y"]) == (
        {"field": "seed", "values": ["11", "12"]}, {"field": "steps", "values": ["1", "2"]},
    )  # fmt: skip
    by_labels = {(cell["x"], cell["y"]): cell for cell in status["cells"]}
    assert by_labels["11", "2"]["pixels_sha256"] == made["pixels_sha256"]  # nothing is varied in that cell
    assert {cell["seed"] for cell in status["cells"]} == {"11", "12"}
    for cell in status["cells"]:
        stored = served.studio.images.get(cell["id"])
        assert stored.recipe.outcome.pixels_sha256 == cell["pixels_sha256"]
        assert stored.recipe.parent == made["pixels_sha256"]
    _, sheet = client.predict(started["grid"], True, api_name="/grid_status")
    assert (
        GridPlan.from_json(read_texts(Path(sheet))["zimage_studio_grid"])
        == served.studio.grids.get(started["grid"]).plan
    )


def test_a_stopped_grid_keeps_its_cells_and_goes_on(client: Client, served: Served):
    values = {"prompt": "a blue bird", **SMALL, "steps": 40}
    started = client.predict("seed", "1,2,3,4", overrides=values, model=served.model, api_name="/grid")
    while client.predict(started["grid"], api_name="/grid_status")[0]["done"] < 1:
        time.sleep(0.05)
    stopped = finished(client, client.predict(started["grid"], api_name="/stop_grid"))
    assert stopped["state"] == "stopped"
    made = {cell["id"] for cell in stopped["cells"]} - {None}
    assert 1 <= len(made) < 4
    whole = finished(client, client.predict(started["grid"], api_name="/resume_grid"))
    assert (whole["state"], whole["done"]) == ("done", 4)
    assert made < {cell["id"] for cell in whole["cells"]}


def test_variations_lie_around_the_image(client: Client, made: dict[str, Any]):
    started = client.predict(made["id"], 0.2, 3, "100", api_name="/variations")
    status = finished(client, started)
    cells = {(cell["column"], cell["row"]): cell for cell in status["cells"]}
    assert (status["kind"], status["done"], len(cells)) == ("neighbourhood", 9, 9)
    assert cells[1, 1]["pixels_sha256"] == made["pixels_sha256"]
    assert cells[0, 0]["variations"] == [{"seed": "100", "strength": 0.2}]
    assert len({cell["pixels_sha256"] for cell in cells.values()}) == 9


def test_one_seed_for_a_row_of_strengths(client: Client, made: dict[str, Any]):
    status = finished(client, client.predict("variation_strength", "0,0.1,0.2", id=made["id"], api_name="/grid"))
    assert status["cells"][0]["pixels_sha256"] == made["pixels_sha256"]
    seeds = {cell["variations"][0]["seed"] for cell in status["cells"][1:]}
    assert len(seeds) == 1


def test_what_others_make_is_not_to_be_seen_nor_stopped(served: Served, client: Client):
    values = {"prompt": "a green tree", **SMALL, "steps": 60}
    started = client.predict("seed", "1,2,3", overrides=values, model=served.model, api_name="/grid")
    stranger = Client(served.url, verbose=False)
    for name in ("/grid_status", "/stop_grid", "/resume_grid"):
        with pytest.raises(AppError, match=f"There is no grid with the id {started['grid']}"):
            stranger.predict(started["grid"], api_name=name)
    assert client.predict(started["grid"], api_name="/stop_grid")["grid"] == started["grid"]
    finished(client, client.predict(started["grid"], api_name="/grid_status")[0])
    seen, _ = stranger.predict(started["grid"], api_name="/grid_status")  # what has ended is history, and for all
    assert seen["state"] == "stopped"


def test_a_second_grid_waits_for_the_first(served: Served, client: Client):
    values = {"prompt": "a green tree", **SMALL, "steps": 60}
    first = client.predict("seed", "1,2,3", overrides=values, model=served.model, api_name="/grid")
    with pytest.raises(AppError, match="A grid of yours is being made"):
        client.predict("seed", "4,5", overrides=values, model=served.model, api_name="/grid")
    client.predict(first["grid"], api_name="/stop_grid")
    finished(client, client.predict(first["grid"], api_name="/grid_status")[0])


BAD_GRIDS = [
    ({"x_field": "colour"}, "'colour' cannot be varied. Choose one of seed, steps"),
    ({"x_field": ["seed"]}, "cannot be varied"),
    ({"x_values": ""}, "The axis seed has no values"),
    ({"x_values": "1,2,1"}, "The axis seed has 1 twice"),
    ({"x_values": "1,x"}, "The seed is 'x'; it must be a whole number"),
    ({"x_values": [1, 2.5]}, "The seed is '2.5'; it must be a whole number"),
    ({"x_field": "steps", "x_values": "2,999"}, "The number of steps is 999; it must be from 1 to 200"),
    ({"x_field": "model", "x_values": "tiny,../../etc"}, "There is no model called ../../etc"),
    ({"x_field": "profile", "x_values": "fast"}, "The memory profile is fast"),
    ({"x_field": "prompt", "x_values": "blue,green"}, "The prompt does not contain blue"),
    ({"x_field": "strength", "x_values": "0.2,0.4"}, "There is a strength but no start picture"),
    ({"x_field": "variation_seed", "x_values": "1,2"}, "no variation strength"),
    ({"y_field": "seed", "y_values": "1"}, "Both axes vary the seed"),
    ({"y_field": "steps", "y_values": {}}, "has no values"),
    ({"overrides": "seed=1"}, "The overrides are 'seed=1'"),
    ({"overrides": {"prompt": "a red fish", "nonsense": 1}}, "There is no field called nonsense"),
    ({"overrides": {"prompt": "a red fish", "source": "../../etc/passwd", "strength": 1}}, "64 hexadecimal digits"),
    ({"overrides": {"prompt": "a red fish", "source": "0" * 64, "strength": 1}}, "is not here. Give Studio the file"),
    ({"overrides": {}}, "The prompt is empty"),
    ({"id": "nobody"}, "There is no image with the id nobody"),
    ({"id": ["x"]}, "The image is ['x']; it must be text"),
    ({"model": "../../etc"}, "There is no model called ../../etc"),
]


@pytest.mark.parametrize(("values", "sentence"), BAD_GRIDS, ids=lambda value: str(value)[:40])
def test_a_bad_grid_is_refused_before_a_cell_is_made(
    client: Client, served: Served, values: dict[str, Any], sentence: str
):
    before = served.studio.images.page()[1], len(served.studio.grids.list())
    whole = {
        "x_field": "seed",
        "x_values": "1,2",
        "overrides": {"prompt": "a red fish", **SMALL},
        "model": served.model,
    }
    with pytest.raises(AppError) as caught:
        client.predict(**{**whole, **values}, api_name="/grid")
    assert sentence in str(caught.value)
    assert (served.studio.images.page()[1], len(served.studio.grids.list())) == before


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strength": 0}, "The variation strength is 0; it must be from 0.01 to 1"),
        ({"strength": "near"}, "The variation strength is 'near'; it must be a number"),
        ({"side": 4}, "it must be odd"),
        ({"side": 9}, "The side of the grid is 9; it must be from 3 to 7"),
        ({"seed": "x"}, "The variation seed is 'x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_variations_are_refused(client: Client, made: dict[str, Any], values: dict[str, Any], sentence: str):
    with pytest.raises(AppError) as caught:
        client.predict(**{"id": made["id"], **values}, api_name="/variations")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"variation_seed": "5"}, "no variation strength"),
        ({"variation_strength": 2}, "The variation strength is 2; it must be from 0 to 1"),
        ({"variety": -1}, "The variety is -1; it must be from 0 to 1"),
        ({"strength": 0.5}, "There is a strength but no start picture"),
        ({"parent": "nobody"}, "There is no image with the id nobody"),
        ({"parent": {"a": 1}}, "it must be text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_beginnings_are_refused(client: Client, served: Served, values: dict[str, Any], sentence: str):
    before = served.studio.images.page()[1]
    with pytest.raises(AppError) as caught:
        generate(client, served, "a red fish", **values)
    assert sentence in str(caught.value)
    assert served.studio.images.page()[1] == before


def test_a_picture_that_was_not_uploaded_is_not_read(served: Served):
    for path in ("/etc/passwd", "../../etc/passwd", str(served.studio.settings.data / "images" / "images.sqlite")):
        picture = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
        event, answer = raw(
            served, "generate_image", ["x", "", "", 64, 64, 2, 0, 1, served.model, "", None, None, picture, 0.5, ""]
        )
        assert event == "error"
        assert "passwd" not in json.dumps(answer)


def test_a_start_picture_that_is_none_is_named(client: Client, served: Served, tmp_path: Path):
    (tmp_path / "notes.png").write_text("not a picture", encoding="utf-8")
    with pytest.raises(AppError, match=r"notes\.png is not a PNG, JPEG or WebP file"):
        generate(client, served, "x", image=handle_file(str(tmp_path / "notes.png")), strength=0.5)


@pytest.mark.parametrize("name", ["", "nope", "../images", "0" * 16, "0" * 10_000, ["x"], {"a": 1}, None, 7])
def test_a_grid_that_is_none_is_refused_whatever_it_is_called(client: Client, name: object):
    for endpoint in ("/grid_status", "/stop_grid", "/resume_grid"):
        with pytest.raises(AppError, match=r"There is no grid with the id|The grid is .*; it must be text"):
            client.predict(name, api_name=endpoint)


def test_the_description_names_every_field_that_can_be_varied(served: Served):
    grid = next(one for one in api_refine.refine_endpoints(served.studio) if one.__name__ == "grid")
    assert all(field in (grid.__doc__ or "") for field in FIELDS)
