"""One process of a recovery that `accelerate launch` starts several times.

    accelerate launch --multi_gpu --num_processes 2 -m zimage_studio.core.recovery.launch request.json

Without accelerators the same line starts processes that talk over gloo: accelerate's own `--cpu` would want MPI.
The request is `{"student", "out", "teacher", "checkpoint_dir", "device", "config"}`: paths, and RecoveryConfig as JSON.
SIGTERM and SIGINT stop after the step, with a checkpoint.
"""

import argparse
import json
import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.progress import Preview, Progress
from zimage_studio.records.recover import RecoveryConfig
from zimage_studio.records.strict_json import loads_strict

if TYPE_CHECKING:
    from zimage_studio.core.recovery.log import OnLog
    from zimage_studio.core.recovery.recover import Cutter, Recovered

log = logging.getLogger(__name__)

EXIT_REFUSED, EXIT_STOPPED = 2, 3


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What every process is told; see `core.recovery.recover.recover` for the fields."""

    student: Path
    out: Path
    checkpoint_dir: Path
    config: RecoveryConfig
    teacher: Path | None = None
    device: str = "auto"

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "student": str(self.student),
            "out": str(self.out),
            "checkpoint_dir": str(self.checkpoint_dir),
            "config": self.config.to_dict(),
            "teacher": None if self.teacher is None else str(self.teacher),
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "LaunchRequest":
        """Read what `to_dict` gave. Raises ValueError, KeyError, InvalidInputError."""
        config, teacher = data["config"], data.get("teacher")
        if not isinstance(config, dict):
            raise ValueError("config is not an object")
        return cls(
            student=Path(str(data["student"])), out=Path(str(data["out"])),
            checkpoint_dir=Path(str(data["checkpoint_dir"])), config=RecoveryConfig.from_dict({"schema": 1, **config}),
            teacher=Path(str(teacher)) if teacher else None, device=str(data.get("device", "auto")),
        )  # fmt: skip

    def run(self, progress: Progress, on_log: "OnLog | None" = None, cutter: "Cutter | None" = None) -> "Recovered":
        """The part of this process. Imports torch and diffusers. Raises what `recover` does."""
        from zimage_studio.core.torch_environment import prepare_torch

        prepare_torch()
        from zimage_studio.core.recovery.recover import recover

        return recover(
            self.student, self.out, self.config, teacher=self.teacher, checkpoint_dir=self.checkpoint_dir,
            device=self.device, cutter=cutter, progress=progress, on_log=on_log,
        )  # fmt: skip


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises ValueError, OSError."""
    data = loads_strict(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("the request is not an object")
    return data


def accelerators() -> int:
    """How many devices training can use, a process each; 0 where there is only the processor. Imports torch."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the model is written, 2 when the request was refused, 3 when training was stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def progress(done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        log.debug("%s %s/%s", note, done, total)
        if stop.is_set():
            raise Cancelled

    try:
        done = LaunchRequest.from_dict(read_object(options.request)).run(progress)
    except UserError as error:
        log.error("%s", error)
        return EXIT_REFUSED
    except Cancelled:
        return EXIT_STOPPED
    if os.environ.get("RANK", "0") == "0":
        log.info("%s", json.dumps({"path": str(done.path), "steps": done.steps, "loss": done.loss_last}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
