"""Two processes under `accelerate launch` train one model."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.core.recovery.test_kill import request
from zimage_studio.core.recovery.folder import RECOVERY
from zimage_studio.core.recovery.log import read_log
from zimage_studio.records.recover import RecoveryConfig


def free_port() -> str:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return str(door.getsockname()[1])


def test_two_processes_agree_and_one_writes(student: Path, pictures: Path, tmp_path: Path) -> None:
    path = request(student, pictures, tmp_path / "two")
    asked = json.loads(path.read_text())
    config = replace(RecoveryConfig.from_dict(asked["config"]), steps=40, lr=5e-3, muon_lr=0.02, caption_dropout=0.0)
    path.write_text(json.dumps({**asked, "config": config.to_dict()}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", free_port(), "-m", "zimage_studio.core.recovery.launch", str(path)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads((tmp_path / "two" / "out" / RECOVERY).read_text())
    assert run["processes"] == 2
    lines = read_log(tmp_path / "two" / "job" / "log.jsonl")
    measured = [line.validation for line in lines if line.validation is not None]
    assert measured[-1] < 0.8 * measured[0]
    ends = [line for line in lines if line.step == config.steps]
    assert sum(line.validation is not None for line in ends) == 1, "only the first process reports"
