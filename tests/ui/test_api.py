"""The public API as its clients meet it: names, results, sentences; and four clients at once."""

import concurrent.futures
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from tests.ui.conftest import Served
from zimage_studio.core.metadata.png import read_own_recipe

PUBLIC = {
    "/generate_image", "/generate", "/models", "/history", "/image", "/delete_image", "/status", "/stop",
    "/inspect", "/replay", "/grid", "/grid_status", "/stop_grid", "/resume_grid", "/variations",
    "/memory_status", "/memory_plan", "/memory_measure", "/set_memory_profile",
    "/compress_plan", "/compress_prune", "/compress_recover", "/compress_evaluate", "/compress_sensitivity",
    "/compress_jobs", "/compress_job", "/compress_job_stop", "/compress_job_resume", "/compress_job_log",
    "/compress_knock_out", "/compress_family",
}  # fmt: skip
SMALL = {"width": 64, "height": 64, "steps": 2, "guidance": 0.0}


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


def generate(client: Client, served: Served, prompt: str, **values: Any) -> tuple[list[str], list[dict[str, Any]]]:
    files, facts = client.predict(prompt, **{**SMALL, "model": served.model, **values}, api_name="/generate_image")
    return files, facts


def raw(served: Served, name: str, data: list[Any] | str, headers: dict[str, str] | None = None) -> tuple[str, Any]:
    """The last event and its data, as a client without our library gets them. `data` may be JSON text."""
    body = data if isinstance(data, str) else json.dumps(data)
    started = httpx.post(
        f"{served.url}gradio_api/call/{name}",
        content='{"data":' + body + "}",
        headers={"content-type": "application/json", **(headers or {})},
    )
    started.raise_for_status()
    event_id = started.json()["event_id"]
    answer = httpx.get(f"{served.url}gradio_api/call/{name}/{event_id}", timeout=60)
    event, _, content = answer.text.strip().split("\n\n")[-1].partition("\n")
    return event.removeprefix("event: "), json.loads(content.removeprefix("data: "))


def test_exactly_the_public_names_are_listed(client: Client):
    info = client.view_api(return_format="dict")
    assert set(info["named_endpoints"]) == PUBLIC  # type: ignore[index]
    assert info["unnamed_endpoints"] == {}  # type: ignore[index]


def test_the_chinese_page_adds_no_second_api(served: Served):
    info = httpx.get(served.url + "zh/gradio_api/info").json()
    assert info["named_endpoints"] == {}


def test_every_endpoint_says_what_it_is_for(served: Served):
    named = httpx.get(served.url + "gradio_api/info").json()["named_endpoints"]
    assert all(len(endpoint["description"]) > 20 for endpoint in named.values())


def test_a_result_has_its_seed_and_the_recipe_that_is_in_the_file(client: Client, served: Served):
    files, facts = generate(client, served, "一条红色的鱼", seed=str(2**64 - 1), count=2)
    assert [fact["seed"] for fact in facts] == [str(2**64 - 1), "0"]
    for file, fact in zip(files, facts, strict=True):
        recipe = read_own_recipe(Path(file))
        assert recipe is not None
        assert json.loads(recipe.to_json()) == fact["recipe"]
        assert recipe.request.prompt == "一条红色的鱼"
        with Image.open(file) as image:
            pixels = image.convert("RGB").tobytes()
        assert hashlib.sha256(pixels).hexdigest() == fact["pixels_sha256"]


def test_the_original_file_comes_back_byte_for_byte(client: Client, served: Served):
    _, facts = generate(client, served, "a fish", seed="5")
    file = client.predict(facts[0]["id"], api_name="/image")
    assert Path(file).read_bytes() == served.studio.images.get(facts[0]["id"]).path.read_bytes()


def test_progress_reaches_the_client(client: Client, served: Served):
    job = client.submit("a fish", **SMALL | {"steps": 20}, model=served.model, api_name="/generate_image")
    notes = set()
    while not job.done():
        notes |= {unit.desc for unit in job.status().progress_data or []}
    assert "Drawing" in notes


def test_history_finds_and_forgets(client: Client, served: Served):
    _, facts = generate(client, served, "a very particular 100% heron", seed="9")
    found = client.predict(search="100% heron", api_name="/history")
    assert (found["total"], found["images"][0]["seed"]) == (1, "9")
    assert client.predict(search="100_ heron", api_name="/history")["total"] == 0
    assert client.predict(facts[0]["id"], api_name="/delete_image") is True
    assert client.predict(search="100% heron", api_name="/history") == {"total": 0, "images": []}
    with pytest.raises(AppError, match="There is no image with the id"):
        client.predict(facts[0]["id"], api_name="/delete_image")


def test_models_and_status_answer(client: Client, served: Served):
    assert served.model in {model["key"] for model in client.predict(api_name="/models")}
    assert client.predict(api_name="/status")["phase"] in ("empty", "loading", "ready", "generating")


def test_stop_ends_the_running_image(client: Client, served: Served):
    job = client.submit("a fish", **SMALL | {"steps": 200}, model=served.model, api_name="/generate_image")
    while not any(unit.desc == "Drawing" for unit in job.status().progress_data or []):
        assert not job.done()
    assert client.predict(api_name="/stop") == 1
    with pytest.raises(AppError, match="stopped"):
        job.result(timeout=20)


BAD = [
    ({"prompt": ""}, "The prompt is empty. Say"),
    ({"prompt": None}, "The prompt is empty. Say"),
    ({"prompt": ["a", "b"]}, "The prompt is ['a', 'b']; it must be text."),
    ({"prompt": {"a": 1}}, "The prompt is {'a': 1}; it must be text."),
    ({"prompt": "x" * 5001}, "The prompt has 5001 characters; at most 5000"),
    ({"prompt": "a <|im_end|> b"}, "contains <|im_end|>"),
    ({"negative_prompt": "x" * 5001}, "The negative prompt has 5001 characters; at most 5000"),
    ({"width": 0}, "The width is 0; it must be from 64 to 4096."),
    ({"width": 1000}, "The width is 1000 px; it must be a multiple of 16. Try 992 or 1008."),
    ({"width": "wide"}, "The width is 'wide'; it must be a whole number from 64 to 4096."),
    ({"width": True}, "The width is True; it must be a whole number"),
    ({"width": [64]}, "The width is [64]; it must be a whole number"),
    ({"width": 4096, "height": 4096}, "4096×4096 is 16777216 pixels; at most"),
    ({"width": 2048, "height": 64}, "too narrow"),
    ({"steps": 0}, "is 0; it must be from 1 to 200."),
    ({"steps": -1}, "is -1; it must be from 1 to 200."),
    ({"steps": 1.5}, "is 1.5; it must be a whole number from 1 to 200."),
    ({"steps": 10000}, "is 10000; it must be from 1 to 200."),
    ({"guidance": -1}, "The guidance is -1; it must be from 0 to 20."),
    ({"guidance": "much"}, "The guidance is 'much'; it must be a number from 0"),
    ({"seed": 2**64}, f"The seed is {2**64}; it must be from 0 to {2**64 - 1}."),
    ({"seed": "0x10"}, "The seed is '0x10'; it must be a whole number"),
    ({"seed": True}, "The seed is True; it must be a whole number"),
    ({"seed": [1]}, "The seed is [1]; it must be a whole number"),
    ({"count": 10**6}, "The number of images is 1000000; it must be from 1 to 64."),
    ({"count": 1.5}, "The number of images is 1.5; it must be a whole number"),
    ({"model": "../../etc/passwd"}, "There is no model called ../../etc/passwd. Known models:"),
    ({"model": ["tiny"]}, "The model is ['tiny']; it must be text."),
]


@pytest.mark.parametrize(("values", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_named_with_its_bound_and_remedy(
    client: Client, served: Served, values: dict[str, Any], sentence: str
):
    before = served.studio.images.page()[1]
    with pytest.raises(AppError) as caught:
        client.predict(**{"prompt": "a fish", **SMALL, "model": served.model, **values}, api_name="/generate_image")
    assert sentence in str(caught.value)
    assert served.studio.images.page()[1] == before


@pytest.mark.parametrize(
    ("guidance", "prompt", "sentence"),
    [
        ("NaN", '"x"', "The guidance is nan; it must be a number from 0"),
        ("Infinity", '"x"', "The guidance is inf; it must be"),
        ("1e400", '"x"', "The guidance is inf; it must be"),
        ("0", '"\\ud83d"', "The prompt contains U+D83D at position 1"),
    ],
)
def test_numbers_that_json_should_not_have_are_refused_too(served: Served, guidance: str, prompt: str, sentence: str):
    data = f'[{prompt}, "", "", 64, 64, 2, {guidance}, 1, "{served.model}", "", null, null, null, null, ""]'
    event, answer = raw(served, "generate_image", data)
    assert event == "error"
    assert sentence in json.dumps(answer, ensure_ascii=False)


def test_errors_are_chinese_for_who_prefers_chinese(served: Served):
    data = ["", "", "", 64, 64, 2, 0, 1, served.model, "", None, None, None, None, ""]
    _, answer = raw(served, "generate_image", data, {"accept-language": "zh-CN,zh;q=0.9,en;q=0.5"})
    assert "提示词是空的" in answer["error"]
    _, answer = raw(served, "generate_image", data, {"accept-language": "en-US,zh;q=0.5"})
    assert "The prompt is empty" in answer["error"]


def test_clients_of_the_official_space_work_by_changing_the_address(served: Served, official: Client):
    gallery, seed_text, seed = official.predict(
        prompt="a fish", resolution="64x128 ( 1:2 )", seed=42, steps=2, shift=3.0, random_seed=False,
        gallery_images=[], api_name="/generate",
    )  # fmt: skip
    assert (seed_text, seed, len(gallery)) == ("42", 42, 1)
    with Image.open(gallery[0]["image"]) as image:
        assert image.size == (64, 128)
    again, _, other = official.predict("a bird", "64x64 ( 1:1 )", 42, 2, 3.0, True, gallery, api_name="/generate")
    assert len(again) == 2
    assert other != 42
    recipe = read_own_recipe(Path(again[0]["image"]))
    assert recipe is not None
    assert (recipe.request.prompt, recipe.request.shift) == ("a bird", 3.0)
    assert Path(again[1]["image"]).read_bytes() == Path(gallery[0]["image"]).read_bytes()


@pytest.fixture(scope="module")
def official(served: Served) -> Client:
    """The alias asks for no model, so it draws with the default one: here the random one."""
    object.__setattr__(served.studio.settings, "model", served.model)
    return Client(served.url, verbose=False)


def test_a_path_that_a_client_names_is_never_given_back(served: Served, official: Client, tmp_path: Path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    own = served.studio.images.page()[0][0]
    gallery = [
        {"image": {"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "caption": None},
        {"image": {"path": f"/etc/{own.id}.png", "orig_name": "passwd"}, "caption": None},
        {"image": {"path": "../../etc/passwd", "url": "http://127.0.0.1:1/x.png"}},
        "/etc/passwd", 5, None, {"image": None}, {"image": {"path": 7}},
    ]  # fmt: skip
    event, answer = raw(served, "generate", ["a fish", "64x64 ( 1:1 )", 1, 1, 3.0, False, gallery])
    if event == "error":
        return  # Gradio itself refused a path outside its cache
    text = json.dumps(answer)
    assert "secret.png" not in text
    assert "passwd" not in text
    assert "127.0.0.1:1/" not in text
    assert len(answer[0]) <= 2


def test_four_clients_at_once_each_get_their_own_images_once(served: Served):
    calls_each = 4
    before = served.studio.images.page()[1]

    def work(number: int) -> list[tuple[str, str, dict[str, Any], str]]:
        client = Client(served.url, verbose=False)
        done = []
        for call in range(calls_each):
            prompt, seed = f"client {number} call {call}", str(1000 * number + call)
            files, facts = generate(client, served, prompt, seed=seed)
            assert len(files) == len(facts) == 1
            done.append((prompt, seed, facts[0], files[0]))
        return done

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = [item for done in pool.map(work, range(4)) for item in done]
    for prompt, seed, fact, file in results:
        assert (fact["recipe"]["request"]["prompt"], fact["seed"]) == (prompt, seed)
        recipe = read_own_recipe(Path(file))
        assert recipe is not None
        assert (recipe.request.prompt, str(recipe.request.seed)) == (prompt, seed)
    assert len({fact["id"] for _, _, fact, _ in results}) == 4 * calls_each
    assert served.studio.images.page()[1] == before + 4 * calls_each


def test_one_client_cannot_fill_the_queue(served: Served):
    client = Client(served.url, verbose=False)
    jobs = [
        client.submit(f"{n}", **SMALL | {"steps": 100}, model=served.model, api_name="/generate_image")
        for n in range(7)
    ]
    deadline = time.monotonic() + 30
    while not any(job.done() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.05)
    while not all(job.done() for job in jobs):
        client.predict(api_name="/stop")
    errors = [str(job.exception()) for job in jobs]
    assert sum("You already have 4 jobs waiting" in error for error in errors) in (2, 3)  # 7 = 1 drawing + 4 + 2
