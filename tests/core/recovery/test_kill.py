"""A process that is killed at any moment loses nothing but time: the resumed run ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.core.recovery.conftest import SIDE
from zimage_studio.core.recovery.recover import recover
from zimage_studio.records.recover import RecoveryConfig

STEPS = 60


def request(student: Path, pictures: Path, folder: Path) -> Path:
    config = RecoveryConfig(
        steps=STEPS, batch=2, size=SIDE, data_set=str(pictures), optimiser="muon", samples=0, checkpoint_every_s=1,
        validate_every_s=1,
    )  # fmt: skip
    folder.mkdir()
    asked = {
        "student": str(student),
        "out": str(folder / "out"),
        "checkpoint_dir": str(folder / "job"),
        "device": "cpu",
    }
    path = folder / "request.json"
    path.write_text(json.dumps({**asked, "config": config.to_dict()}))
    return path


def run(path: Path) -> None:
    """What the module does, in this process."""
    asked = json.loads(path.read_text())
    config = RecoveryConfig.from_dict(asked["config"])
    places = (Path(asked[name]) for name in ("student", "out"))
    recover(*places, config, checkpoint_dir=Path(asked["checkpoint_dir"]), device="cpu")


def test_killed_and_resumed_gives_the_same_bits(student: Path, pictures: Path, tmp_path: Path) -> None:
    path = request(student, pictures, tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "job" / "checkpoint" / "recover.safetensors"
    command = [sys.executable, "-m", "zimage_studio.core.recovery.launch", str(path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "2"})
    try:
        while not checkpoint.is_file():
            assert process.poll() is None, "it ended before its first checkpoint"
            time.sleep(0.02)
        time.sleep(random.uniform(0, 1.5))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "out").exists(), "it was killed too late to tell"
    run(path)
    run(request(student, pictures, tmp_path / "whole"))
    one, two = (tmp_path / name / "out" / "transformer" for name in ("killed", "whole"))
    assert [file.read_bytes() for file in sorted(one.iterdir())] == [
        file.read_bytes() for file in sorted(two.iterdir())
    ]
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "job" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
