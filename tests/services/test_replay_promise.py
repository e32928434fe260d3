"""The promise: on the same stack a replay is bit-exact, in a new process, whatever ran before and beside it.

test_replay.py shows what a verdict is made of; here real processes keep the promise, on the embedded model.
docs/replay.md holds the proof with a hundred images.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, TINY
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio

pytestmark = pytest.mark.skipif(not TINY.is_dir(), reason="the embedded model is not in this checkout")

SMALL = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0}
WAIT_S = 120
STAGES = ("after a restart", "after another model", "after a cancelled job", "after a failed job", "in a crowd")


def make(studio: Studio) -> list[StoredImage]:
    """Four images that use all that a request has; the last one starts from the first."""
    wide = {"prompt": "蓝色的星星", "negative_prompt": "红色", "guidance": 2.5, "width": 128, "height": 96}
    wanted: list[dict[str, object]] = [
        {**SMALL, "seed": 2**64 - 1},
        {**SMALL, **wide, "seed": 4, "shift": 5.5},
        {**SMALL, "seed": 5, "variations": [{"seed": 6, "strength": 0.3}], "variety": 0.7, "steps": 3},
    ]
    images = [studio.generation.submit(values, model="tiny").result(WAIT_S)[0] for values in wanted]
    source = {"source": images[0].recipe.outcome.pixels_sha256, "strength": 0.6, "width": 128, "height": 128}
    return [*images, *studio.generation.submit({**SMALL, "seed": 8, **source}, model="tiny").result(WAIT_S)]


def replayed(
    images: list[StoredImage], folder: Path, models: Path, *, threads: int, stages: int = len(STAGES)
) -> dict[str, list[dict[str, object]]]:
    """The verdicts of a new process with an empty data folder, by stage."""
    given = {
        "data": str(folder / "other data"), "models": str(models), "threads": threads, "stages": stages,
        "files": [str(image.path) for image in images],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.services.replay_process"],
        cwd=ROOT, input=json.dumps(given), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["peak"] == 1, "pipeline calls ran at once"
    return answer["verdicts"]


@pytest.fixture
def threads(request):
    """So many for torch, here and in the other process."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_bit_exact_in_a_new_process_whatever_happens_there(threads, studio, two_models, tmp_path):
    images = make(studio)
    assert {image.recipe.stack["threads"] for image in images} == {str(threads)}
    verdicts = replayed(images, tmp_path, two_models, threads=threads)
    assert tuple(verdicts) == STAGES
    for stage, found in verdicts.items():
        assert len(found) == len(images)
        assert [verdict["verdict"] for verdict in found] == ["identical"] * len(images), (stage, found)


def test_another_number_of_threads_is_no_mystery(studio, two_models, tmp_path):
    """Convolutions on a CPU may then be summed in another order: identical, or the verdict names the threads."""
    big = {"prompt": "a red circle", "seed": 3, "width": 256, "height": 256, "steps": 2, "guidance": 0}
    images = list(studio.generation.submit(big, model="tiny").result(WAIT_S))
    (verdict,) = replayed(images, tmp_path, two_models, threads=1, stages=1)["after a restart"]
    if verdict["verdict"] != "identical":
        assert [difference["field"] for difference in verdict["differences"]] == ["stack.threads"]
        assert verdict["max_difference"] <= 2
        assert verdict["psnr_db"] > 60
