"""A Studio in a process of its own that replays files, again and again, with something else going on in between.

`python -m tests.services.replay_process` reads {"data", "models", "threads", "stages", "files"} from stdin and
prints, for each of the first stages, the verdict on every file.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.conftest import pytest_configure as before_transformers
from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.progress import silent
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.replay import Original, read_original
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

WAIT_S = 120
OTHER = "one"
"""The key of the second model."""
QUICK = {"prompt": "a blue star", "width": 64, "height": 64, "steps": 2, "guidance": 1}
CLIENTS, CALLS = 4, 2


class Replays:
    """The files, and ways to replay all of them."""

    def __init__(self, studio: Studio, files: list[Path]) -> None:
        self._studio = studio
        self._originals = [read_original(file) for file in files]
        for file in files:
            studio.sources.keep(file)

    def all(self) -> list[dict[str, object]]:
        """One after the other."""
        return [self._verdict(original, self.start(original)).to_dict() for original in self._originals]

    def start(self, original: Original, session: str = "replay") -> GenerationJob:
        return self._studio.replay.start(original, silent, session=session)

    def _verdict(self, original: Original, job: GenerationJob) -> Verdict:
        (image,) = job.result(WAIT_S)
        return self._studio.replay.verdict(original, image)

    def in_a_crowd(self) -> list[dict[str, object]]:
        """Each from a thread of its own, while others ask for other images on two models."""
        verdicts: dict[int, dict[str, object]] = {}
        errors: list[str] = []

        def replay(number: int) -> None:
            try:
                job = self.start(self._originals[number], f"replay {number}")
                verdicts[number] = self._verdict(self._originals[number], job).to_dict()
            except UserError as error:
                errors.append(str(error))

        def others(number: int) -> None:
            for call in range(CALLS):
                model = (OTHER, "tiny")[(number + call) % 2]
                values = {**QUICK, "seed": number, "guidance": call}
                self._studio.generation.submit(values, model=model, session=f"other {number}").result(WAIT_S)

        threads = [threading.Thread(target=others, args=(number,)) for number in range(CLIENTS)]
        threads += [threading.Thread(target=replay, args=(number,)) for number in range(len(self._originals))]
        for thread in threads[::2] + threads[1::2]:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        if errors:
            raise RuntimeError("; ".join(errors))
        return [verdicts[number] for number in range(len(self._originals))]


def another_model(studio: Studio) -> None:
    """Loads it, which lets the first one go."""
    studio.generation.submit({**QUICK, "seed": 1}, model=OTHER).result(WAIT_S)


def a_cancelled_job(studio: Studio) -> None:
    """On the same model, stopped between two steps, with other numbers of everything."""
    values = {**QUICK, "steps": 200, "shift": 9, "width": 128, "seed": 2, "variety": 1}
    job = studio.generation.submit(values, model="tiny")
    view = job.view
    while not (view.finished or (view.state == "running" and view.done >= 1)):
        view = job.wait_change(view.version, 1)
    studio.generation.stop_job(job)
    try:
        job.result(WAIT_S)
    except Cancelled:
        return
    raise RuntimeError("the job was not cancelled")


def a_failed_job(studio: Studio) -> None:
    """On the same model: the text encoder has more tokens to read than it takes."""
    job = studio.generation.submit({**QUICK, "prompt": "猫狗 " * 1200, "seed": 3}, model="tiny")
    try:
        job.result(WAIT_S)
    except UserError:
        return
    raise RuntimeError("the job did not fail")


def run(studio: Studio, files: list[Path], count: int) -> dict[str, list[dict[str, object]]]:
    """The first `count` stages, in this order, in one process."""
    replays = Replays(studio, files)

    def after(happens: Callable[[Studio], None]) -> list[dict[str, object]]:
        happens(studio)
        return replays.all()

    stages: dict[str, Callable[[], list[dict[str, object]]]] = {
        "after a restart": replays.all,
        "after another model": lambda: after(another_model),
        "after a cancelled job": lambda: after(a_cancelled_job),
        "after a failed job": lambda: after(a_failed_job),
        "in a crowd": replays.in_a_crowd,
    }
    return {name: stage() for name, stage in list(stages.items())[:count]}


def main() -> None:
    """One process."""
    given = json.loads(sys.stdin.read())
    before_transformers()
    import torch

    torch.set_num_threads(given["threads"])
    studio = build_studio(Settings(data=Path(given["data"]), models=(Path(given["models"]),), offline=True))
    studio.start()
    try:
        verdicts = run(studio, [Path(file) for file in given["files"]], given["stages"])
    finally:
        studio.begin_stop()
        studio.finish(WAIT_S)
        studio.close()
    sys.stdout.write(json.dumps({"verdicts": verdicts, "peak": studio.manager.meter.peak}) + "\n")


if __name__ == "__main__":
    main()
