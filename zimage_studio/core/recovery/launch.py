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
from pathlib import Path

from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.progress import Preview
from zimage_studio.records.recover import parse_recovery
from zimage_studio.records.strict_json import loads_strict

log = logging.getLogger(__name__)

EXIT_REFUSED, EXIT_STOPPED = 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the model is written, 2 when the request was refused, 3 when training was stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    prepare_torch()
    from zimage_studio.core.recovery.recover import recover  # imports torch and diffusers

    def progress(done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        log.debug("%s %s/%s", note, done, total)
        if stop.is_set():
            raise Cancelled

    try:
        data = loads_strict(options.request.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("the request is not an object")
        teacher = data.get("teacher")
        done = recover(
            Path(str(data["student"])), Path(str(data["out"])), parse_recovery(_settings(data)),
            teacher=Path(str(teacher)) if teacher else None, checkpoint_dir=Path(str(data["checkpoint_dir"])),
            device=str(data.get("device", "auto")), progress=progress,
        )  # fmt: skip
    except UserError as error:
        log.error("%s", error)
        return EXIT_REFUSED
    except Cancelled:
        return EXIT_STOPPED
    if os.environ.get("RANK", "0") == "0":
        log.info("%s", json.dumps({"path": str(done.path), "steps": done.steps, "loss": done.loss_last}))
    return 0


def _settings(data: dict[str, object]) -> dict[str, object]:
    config = data["config"]
    if not isinstance(config, dict):
        raise ValueError("config is not an object")
    return {name: value for name, value in config.items() if name != "schema"}


if __name__ == "__main__":
    raise SystemExit(main())
