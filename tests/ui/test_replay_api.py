"""`/inspect` and `/replay` as their clients meet them: what is read, the verdict as data, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.core import foreign_samples as foreign
from tests.ui.conftest import Served
from tests.ui.test_api import raw
from zimage_studio.core.metadata.png import read_own_recipe, write_png
from zimage_studio.services.replay import _pixels

SMALL = {"width": 64, "height": 64, "steps": 2, "guidance": 0.0}
TOP_SEED = 2**64 - 1


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


@pytest.fixture(scope="module")
def made(client: Client, served: Served) -> dict[str, Any]:
    """An image of the random model, with a seed that JavaScript would round."""
    files, facts = client.predict(
        "a fish\r\nin two lines", seed=str(TOP_SEED), model=served.model, **SMALL, api_name="/generate_image"
    )
    return {**facts[0], "file": files[0]}


def replay(client: Client, **values: Any) -> tuple[dict[str, Any], str | None, dict[str, Any] | None]:
    return client.predict(**values, api_name="/replay")


def test_our_own_file_is_inspected_whole(client: Client, made: dict[str, Any]):
    found = client.predict(file=handle_file(made["file"]), api_name="/inspect")
    assert (found["dialect"], found["seed"]) == ("zimage_studio", str(TOP_SEED))
    assert found["recipe"]["outcome"]["pixels_sha256"] == made["pixels_sha256"]
    assert (found["converted"], found["unknown"]) == ([], {})


def test_a_foreign_file_and_a_pasted_text_are_inspected(client: Client, tmp_path: Path):
    path = tmp_path / "猫.jpg"
    path.write_bytes(foreign.jpeg(foreign.exif({}, inner={0x9286: foreign.user_comment(foreign.A1111)})))
    by_file = client.predict(file=handle_file(str(path)), api_name="/inspect")
    by_text = client.predict(text=foreign.A1111, api_name="/inspect")
    assert by_file["dialect"] == by_text["dialect"] == "a1111"
    assert by_file["recipe"] == by_text["recipe"]
    assert by_file["seed"] == "123456789"
    guidance = next(conversion for conversion in by_file["converted"] if conversion["field"] == "guidance")
    assert guidance["to"] == 0.0 and "one more" in guidance["why"]


def test_the_text_is_read_when_the_file_says_nothing(client: Client, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    found = client.predict(file=handle_file(str(tmp_path / "x.png")), text=foreign.SWARM, api_name="/inspect")
    assert (found["dialect"], found["seed"]) == ("swarmui", str(TOP_SEED))


@pytest.mark.parametrize("way", ["id", "file"])
def test_a_replay_is_identical(client: Client, made: dict[str, Any], way: str):
    given = {"id": made["id"]} if way == "id" else {"file": handle_file(made["file"])}
    verdict, file, entry = replay(client, **given)
    assert (verdict["verdict"], verdict["differences"], verdict["changed"]) == ("identical", [], [])
    assert verdict["reason"] == "Identical: every pixel is the same."
    assert "path" not in verdict
    assert entry is not None and file is not None
    assert (entry["pixels_sha256"], entry["seed"]) == (made["pixels_sha256"], str(TOP_SEED))
    recipe = read_own_recipe(Path(file))
    assert recipe is not None and recipe.parent == made["pixels_sha256"]


def test_what_was_changed_is_named_and_seeds_stay_whole(client: Client, made: dict[str, Any]):
    verdict, _, entry = replay(client, id=made["id"], overrides={"seed": str(TOP_SEED - 1), "steps": 3})
    assert (verdict["verdict"], verdict["changed"]) == ("differs", ["seed", "steps"])
    assert verdict["reason"].startswith("Changed by you: seed, number of steps.")
    named = {difference["field"]: difference for difference in verdict["differences"]}
    assert named["request.seed"] == {"field": "request.seed", "then": str(TOP_SEED), "now": str(TOP_SEED - 1)}
    assert verdict["psnr_db"] > 0 and verdict["max_difference"] > 0
    assert entry is not None and entry["seed"] == str(TOP_SEED - 1)


def test_a_foreign_picture_gets_a_comparison_and_no_verdict(client: Client, served: Served, tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(foreign.png(parameters="a fish\nSteps: 2, Sampler: Euler, CFG scale: 1, Seed: 3, Size: 64x64"))
    verdict, _, entry = replay(client, file=handle_file(str(path)), model=served.model)
    assert (verdict["verdict"], verdict["psnr_db"]) == ("compared", None)  # the sample is a picture of 16×16
    assert "another size" in verdict["reason"]
    assert entry is not None
    assert (entry["recipe"]["request"]["seed"], entry["recipe"]["request"]["guidance"]) == (3, 0.0)
    Image.new("RGB", (64, 64), "red").save(path)
    verdict, _, _ = replay(client, file=handle_file(str(path)), model=served.model, overrides={"prompt": "x", **SMALL})
    assert verdict["verdict"] == "compared" and verdict["psnr_db"] > 0
    assert "a comparison, not a verdict" in verdict["reason"]


def test_weights_that_are_not_here_are_a_verdict_and_another_model_can_be_tried(
    client: Client, served: Served, made: dict[str, Any], tmp_path: Path
):
    recipe = read_own_recipe(Path(made["file"]))
    assert recipe is not None
    elsewhere = replace(recipe, model=replace(recipe.model, sha256="ab" * 32))
    path = tmp_path / "x.png"
    pixels = _pixels(Path(made["file"]), 64, 64)
    assert pixels is not None
    path.write_bytes(write_png(pixels, elsewhere))
    verdict, file, entry = replay(client, file=handle_file(str(path)))
    assert (verdict["verdict"], file, entry) == ("refused", None, None)
    assert "abababababababab" in verdict["reason"] and served.model in verdict["reason"]
    verdict, _, _ = replay(client, file=handle_file(str(path)), model=served.model)
    assert verdict["verdict"] == "identical"  # the very pixels, although by other weights than the recipe names
    verdict, _, _ = replay(client, file=handle_file(str(path)), model=served.model, overrides={"seed": 1})
    assert "model.sha256" in {difference["field"] for difference in verdict["differences"]}
    assert verdict["changed"] == ["seed", "model"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "There is nothing to replay."),
        ({"id": "nonsense"}, "There is no image with the id nonsense."),
        ({"id": ["a"]}, "The image is ['a']; it must be text."),
        ({"overrides": [1]}, "The overrides are [1]; write them as an object"),
        ({"overrides": {"sed": 1}}, "There is no field called sed."),
        ({"overrides": {"seed": "0x10"}}, "The seed is '0x10'; it must be a whole number"),
        ({"overrides": {"count": 64}}, "The number of images is 64; it must be from 1 to 1."),
        ({"overrides": {"width": 1000}}, "Try 992 or 1008."),
        ({"model": "../../etc/passwd"}, "There is no model called ../../etc/passwd."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_refused_with_our_sentence(
    client: Client, served: Served, made: dict[str, Any], values: dict[str, Any], sentence: str
):
    before = served.studio.images.page()[1]
    given = {} if values == {} or "id" in values else {"id": made["id"]}
    with pytest.raises(AppError) as refused:
        replay(client, **given, **values)
    assert sentence in str(refused.value)
    assert served.studio.images.page()[1] == before


def test_what_is_no_picture_is_refused_by_its_name(client: Client, tmp_path: Path):
    path = tmp_path / "Brief an Oma.png"
    path.write_text("Liebe Oma", encoding="utf-8")
    for name in ("/inspect", "/replay"):
        with pytest.raises(AppError, match=r"Brief an Oma\.png is not a PNG, JPEG or WebP file"):
            client.predict(file=handle_file(str(path)), api_name=name)


def test_nothing_to_read_and_wrong_types_are_refused(client: Client):
    with pytest.raises(AppError, match="There is nothing to read"):
        client.predict(api_name="/inspect")
    with pytest.raises(AppError, match=r"The text is \['a'\]; it must be text"):
        client.predict(text=["a"], api_name="/inspect")
    with pytest.raises(AppError, match="There is nothing to replay"):
        client.predict(api_name="/replay")


def test_a_path_that_was_not_uploaded_is_never_read(served: Served, tmp_path: Path, made: dict[str, Any]):
    secret = tmp_path / "secret.png"
    secret.write_bytes(Path(made["file"]).read_bytes())
    stored = served.studio.images.get(made["id"]).path
    meta = {"_type": "gradio.FileData"}
    for path in (str(secret), str(stored), "/etc/passwd", "../../etc/passwd", "/proc/self/environ", "\0", "x" * 5000):
        for file in ({"path": path, "meta": meta}, {"path": path}, path, [path], {"path": [path], "meta": meta}, 7):
            for name, data in (("inspect", [file, ""]), ("replay", [file, "", None, ""])):
                event, answer = raw(served, name, data)
                assert event == "error", (name, file)
                text = json.dumps(answer)
                assert "zimage_studio" not in text and "root:" not in text and made["pixels_sha256"] not in text


def test_an_answer_is_in_chinese_for_who_prefers_chinese(served: Served, made: dict[str, Any]):
    data = [None, made["id"], {"seed": "5"}, ""]
    _, answer = raw(served, "replay", data, {"accept-language": "zh-CN,zh;q=0.9"})
    assert answer[0]["reason"].startswith("您改动了：种子。")
    _, answer = raw(served, "inspect", [None, ""], {"accept-language": "zh-CN"})
    assert "没有可读的内容" in answer["error"]


def test_the_endpoints_are_described(served: Served):
    named = httpx.get(served.url + "gradio_api/info").json()["named_endpoints"]
    for name, parameters in (("/inspect", ["file", "text"]), ("/replay", ["file", "id", "overrides", "model"])):
        assert [parameter["parameter_name"] for parameter in named[name]["parameters"]] == parameters
        assert all(parameter["parameter_has_default"] for parameter in named[name]["parameters"])
