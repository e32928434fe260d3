"""The command line keeps its contract: one JSON object, sentences for refusals, exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY
from zimage_studio.cli import main

needs_tiny = pytest.mark.skipif(not TINY.is_dir(), reason="the embedded model is not in this checkout")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    return ["--data", str(tmp_path / "data")]


@pytest.fixture(scope="module")
def made_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of the embedded model."""
    folder = tmp_path_factory.mktemp("made")
    arguments = ["generate", "a red fish", "--seed", "7", "--steps", "1", "--data", str(folder), "--out", str(folder)]
    assert main(arguments) == 0
    return next(folder.glob("*.png"))


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], ["prompt is empty"]),
        (["x", "--size", "1000x512"], ["width", "1000", "992", "1008"]),
        (["x", "--size", "big"], ["big", "1024x1024"]),
        (["x", "--steps", "0"], ["number of steps", "0", "1", "200"]),
        (["x", "--steps", "nan"], ["number of steps", "nan"]),
        (["x", "--count", "1000000"], ["number of images", "1000000", "64"]),
        (["x", "--guidance", "inf"], ["guidance", "inf", "20"]),
        (["x", "--seed", "abc"], ["seed", "'abc'", "18446744073709551615"]),
        (["x", "--model", "../../etc/passwd"], ["etc/passwd"]),
        (["x", "--profile", "magic"], ["profile", "magic", "exact"]),
        (["x", "--nonsense"], ["--nonsense"]),
        ([], ["prompt"]),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(capsys, data, arguments, words):
    assert main(["generate", *arguments, *data]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    for word in words:
        assert word in shown.err


def test_the_sentence_comes_in_chinese_when_asked(capsys, data):
    assert main(["generate", "x", "--size", "1000x512", "--lang", "zh", *data]) == 2
    assert "宽度是 1000 像素" in capsys.readouterr().err


@needs_tiny
def test_generate_then_inspect(capsys, data, tmp_path):
    made = answer(
        capsys,
        "generate",
        "一个红色圆形",
        "--seed",
        "7",
        "--count",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--offline",
        *data,
    )
    first, second = made["images"]
    assert (first["seed"], second["seed"]) == (7, 8)
    assert first["pixels_sha256"] == first["recipe"]["outcome"]["pixels_sha256"]
    assert Path(first["path"]).parent == tmp_path / "out"
    with Image.open(first["path"]) as image:
        assert image.size == (first["recipe"]["request"]["width"], first["recipe"]["request"]["height"])
    read = answer(capsys, "inspect", first["path"])
    assert read["dialect"] == "zimage_studio"
    assert read["recipe"] == first["recipe"]
    assert (read["converted"], read["unknown"]) == ([], {})


@needs_tiny
def test_models_lists_shows_and_adds(capsys, data, tmp_path):
    listed = answer(capsys, "models", *data)["models"]
    assert listed[0]["key"] == "tiny"
    assert {"key", "kind", "path", "sha256", "parent", "parameters", "bytes"} <= listed[0].keys()
    shown = answer(capsys, "models", "show", "tiny", *data)["models"][0]
    assert len(shown["sha256"]) == 64 and shown["parameters"] > 10**6
    copy = tmp_path / "mine"
    copy.symlink_to(TINY)
    added = answer(capsys, "models", "add", str(copy), *data)["models"][0]
    assert added["key"] in {model["key"] for model in answer(capsys, "models", "list", *data)["models"]}


def test_a_path_without_a_model_is_refused(capsys, data, tmp_path):
    assert main(["models", "add", str(tmp_path / "nothing"), *data]) == 2
    assert "nothing" in capsys.readouterr().err


def test_inspecting_what_is_no_png_is_refused(capsys, data, tmp_path):
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    assert main(["inspect", str(tmp_path / "x.png"), *data]) == 2
    assert "not a PNG" in capsys.readouterr().err


@needs_tiny
def test_ctrl_c_stops_within_a_step_with_status_130(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "zimage_studio", "generate", "a red circle", "--steps", "200", "--count", "64",
         "--data", str(tmp_path), "--offline", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("images/*/*.png")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().startswith("error: ")


def test_help_names_every_command():
    shown = subprocess.run(
        [sys.executable, "-m", "zimage_studio", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for command in ("generate", "inspect", "models"):
        assert command in shown


@needs_tiny
def test_a_replay_in_a_new_process_is_identical_and_a_changed_seed_is_named(capsys, data, tmp_path):
    made = answer(capsys, "generate", "a red circle", "--seed", "7", "--offline", *data)
    path = made["images"][0]["path"]
    done = subprocess.run(
        [sys.executable, "-m", "zimage_studio", "replay", path, "--offline", "--json", *data],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    verdict = json.loads(done.stdout)
    assert (verdict["verdict"], verdict["differences"], verdict["max_difference"]) == ("identical", [], 0)
    other = answer(capsys, "replay", path, "--seed", "8", "--offline", *data)
    assert (other["verdict"], other["differences"]) == ("differs", [{"field": "request.seed", "then": 7, "now": 8}])
    assert {"verdict", "reason", "differences", "psnr_db", "ssim", "max_difference", "path"} <= other.keys()


def test_a_replay_of_a_foreign_picture_is_refused_as_a_verdict(capsys, data, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert main(["replay", str(tmp_path / "x.png"), "--json", *data]) == 2
    assert json.loads(capsys.readouterr().out)["verdict"] == "refused"


@needs_tiny
def test_a_picture_and_a_variation_are_part_of_the_recipe(capsys, data, tmp_path):
    start = tmp_path / "start.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(start)
    (made,) = answer(
        capsys, "generate", "a red circle", "--seed", "7", "--size", "64x64", "--steps", "4", "--image", str(start),
        "--strength", "0.5", "--variation-seed", "9", "--variation-strength", "0.25", "--variety", "0.5", *data,
    )["images"]  # fmt: skip
    request = made["recipe"]["request"]
    assert (request["strength"], request["variety"]) == (0.5, 0.5)
    assert request["variations"] == [{"seed": 9, "strength": 0.25}]
    assert made["recipe"]["parent"] == request["source"]
    assert answer(capsys, "replay", made["path"], *data)["verdict"] == "identical"


@needs_tiny
def test_a_grid_with_its_sheet_and_its_cells(capsys, data, tmp_path):
    (made,) = answer(capsys, "generate", "a red fish", "--seed", "7", "--steps", "2", *data)["images"]
    grid = answer(
        capsys, "grid", made["path"], "--x", "seed=7,8", "--y", "prompt=fish,house", "--out", str(tmp_path), *data
    )
    assert [(cell["x"], cell["y"]) for cell in grid["cells"]] == [
        ("7", "fish"), ("8", "fish"), ("7", "house"), ("8", "house"),
    ]  # fmt: skip
    assert grid["cells"][0]["pixels_sha256"] == made["pixels_sha256"]
    assert len({cell["pixels_sha256"] for cell in grid["cells"]}) == 4
    assert all(Path(cell["path"]).parent == tmp_path and Path(cell["path"]).exists() for cell in grid["cells"])
    with Image.open(grid["sheet"]) as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 2 * 128
    around = answer(capsys, "grid", made["path"], "--around", "0.5", *data)
    assert len(around["cells"]) == 9
    assert around["cells"][4]["pixels_sha256"] == made["pixels_sha256"]


@needs_tiny
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--x", "colour=1"], ["'colour'", "variation_strength"]),
        (["--x", "seed"], ["seed", "no values"]),
        (["--x", "steps=0,1"], ["number of steps", "0", "200"]),
        (["--y", "seed=1"], ["--x FIELD"]),
        (["--x", "seed=1", "--around", "0.2"], ["--around"]),
        (["--around", "2"], ["variation strength", "2", "1"]),
        (["--around", "0.2", "--side", "4"], ["4", "odd"]),
        (["--x", "model=tiny,huge"], ["huge"]),
        (["--resume", "../etc"], ["no grid", "../etc"]),
    ],
)
def test_a_grid_that_cannot_be_is_refused(capsys, data, made_image, arguments, words):
    assert main(["grid", str(made_image), *arguments, *data]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in words:
        assert word in shown.err


@needs_tiny
def test_a_stopped_grid_goes_on_in_another_process(data, tmp_path):
    run = [sys.executable, "-m", "zimage_studio"]
    made = json.loads(
        subprocess.run(
            [*run, "generate", "a red fish", "--seed", "1", "--json", *data], capture_output=True, check=True, cwd=ROOT
        ).stdout
    )["images"][0]
    process = subprocess.Popen(
        [*run, "grid", made["path"], "--x", "seed=" + ",".join(map(str, range(1, 33))), "--y", "steps=8,9", *data],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    name = process.stderr.readline().split()[-1]
    images = tmp_path / "data" / "images"
    while len(list(images.glob("*/*.png"))) < 4:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    before = {path.name for path in images.glob("*/*.png")}
    assert 4 <= len(before) < 65
    done = subprocess.run([*run, "grid", "--resume", name, "--json", *data], capture_output=True, check=True, cwd=ROOT)
    cells = json.loads(done.stdout)["cells"]
    assert len(cells) == 64
    assert before - {Path(made["path"]).name} <= {Path(cell["path"]).name for cell in cells}  # nothing is made twice
