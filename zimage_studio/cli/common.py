"""What the commands share: options, printing, the services, and following a job to its end."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.messages import Lang, say
from zimage_studio.records.memory import MemoryProfile
from zimage_studio.services.generation import GenerationJob, JobView
from zimage_studio.services.grids import Grid, GridView
from zimage_studio.services.images import StoredImage
from zimage_studio.services.memory import AUTO
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

DataOption = Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where all state lives.")]
LangOption = Annotated[str | None, typer.Option("--lang", metavar="en|zh", help="Language of messages.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="KEY", help="`tiny`, a key of `models`, a path or a hub id.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME|FILE", help="Memory profile, or `auto`; the one in use when not given."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
FoldersOption = Annotated[list[str] | None, typer.Option("--models", metavar="DIR", help="More folders with models.")]
OfflineOption = Annotated[bool | None, typer.Option("--offline", help="Never use the network.")]
ShiftOption = Annotated[str | None, typer.Option(help="Time shift of the scheduler; the model's own by default.")]
VariationSeedOption = Annotated[str | None, typer.Option(help="Turn the start noise towards this seed's.")]
VariationStrengthOption = Annotated[str | None, typer.Option(help="How far: 0 stays, 1 arrives.")]
VarietyOption = Annotated[
    str | None, typer.Option(help="0 to 1: seeds differ more, the prompt is read loosely at first.")
]
ImageOption = Annotated[Path | None, typer.Option("--image", metavar="FILE", help="A picture to start from.")]
StrengthOption = Annotated[str | None, typer.Option(help="How much of it may change, 0.01 to 1.")]

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Also in place of what is called so already.")]


@dataclass(frozen=True, slots=True)
class Printer:
    """Where results and progress go."""

    as_json: bool
    lang: Lang

    def result(self, data: dict[str, object], text: str) -> None:
        sys.stdout.write((json.dumps(data, ensure_ascii=False, allow_nan=False) if self.as_json else text) + "\n")

    def progress(self, view: JobView, before: str = "") -> None:
        """One line, written over the last one; nothing where nobody watches."""
        note = say(view.note, self.lang, ahead=view.ahead) if view.note else ""
        where = f" {view.done:g}/{view.total:g}" if view.total and view.note == "note.denoising" else ""
        share = f" {view.done / view.total:.0%}" if view.total and "load" in view.note else ""
        line = f"{before}[{view.index + 1}/{view.count}] {note}{where}{share}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()


def given(**values: object) -> dict[str, object]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def wanted_profile(studio: Studio, name: str | None) -> MemoryProfile | None:
    """The preset or saved profile `name`, or the one in a file; the one in use when None.

    None where Studio is to choose for the model. Raises InvalidInputError, UserError.
    """
    if name is None:
        return studio.memory.settled
    return None if name == AUTO else studio.memory.find(name, allow_paths=True)


def load_profile(studio: Studio, name: str | None) -> MemoryProfile:
    """The same, with what Studio chose for the model in memory in place of None."""
    return wanted_profile(studio, name) or studio.memory.profile


def parse_size(size: str | None) -> dict[str, object]:
    """Width and height from `WxH`; nothing when not given. Raises InvalidInputError."""
    if size is None:
        return {}
    width, cross, height = size.lower().replace("×", "x").partition("x")
    if not cross or not width or not height:
        raise InvalidInputError("bad_size", field="size", value=size)
    return {"width": width, "height": height}


@contextmanager
def services(settings: Settings) -> Iterator[Studio]:
    """The services without the owner thread: nothing is loaded."""
    studio = build_studio(settings)
    try:
        yield studio
    finally:
        studio.images.close()


@contextmanager
def running_studio(settings: Settings) -> Iterator[Studio]:
    """The services with their owner thread, until the block ends."""
    studio = build_studio(settings)
    studio.manager.start()
    try:
        yield studio
    finally:
        studio.begin_stop()
        studio.close()


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl+C and SIGTERM call `stop` instead of ending the process."""

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(job: GenerationJob, printer: Printer) -> tuple[StoredImage, ...]:
    """Follow the job to its end; Ctrl+C and SIGTERM stop it at its next step."""
    with stopped_by_signals(job.stop):
        view = job.view
        while not view.finished:
            view = job.wait_change(view.version, 1.0)
            printer.progress(view)
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    for rung in view.recovered:
        sys.stderr.write(say(f"recovery.{rung}", printer.lang) + "\n")
    return job.result()


def watch_grid(grid: Grid, printer: Printer) -> GridView:
    """Follow the grid to its end; Ctrl+C and SIGTERM stop it, and what is made stays."""
    with stopped_by_signals(grid.stop):
        view = grid.view
        while not view.finished:
            view = grid.wait_change(view.version, 1.0)
            if view.job is not None:
                printer.progress(view.job.view, f"{view.done + 1}/{view.total} ")
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return grid.result()


def refuse_taken(*paths: Path) -> None:
    """Raises UserError (file_taken) for the first file that is there already."""
    for path in paths:
        if path.exists():
            raise UserError("file_taken", value=path)


def copied(image: StoredImage, folder: Path) -> StoredImage:
    """A copy of the file in `folder`, which is made if need be. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return StoredImage(image.id, Path(shutil.copy2(image.path, folder / image.path.name)), image.recipe)
    except OSError as error:
        raise UserError("cannot_write", folder=folder, why=error.strerror) from error


def entry(image: StoredImage) -> dict[str, object]:
    """An image as --json prints it."""
    recipe = image.recipe
    return {
        "path": str(image.path),
        "seed": recipe.request.seed,
        "pixels_sha256": recipe.outcome.pixels_sha256,
        "seconds": recipe.outcome.seconds,
        "recipe": recipe.to_dict(),
    }


def quiet(done: float, total: float, note: str, /, preview: object = None) -> None:
    """Hashing a model that is shown needs no progress."""
