"""Grids: many images that differ in one or two fields, made one by one, stopped and resumed at will."""

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from zimage_studio.core.metadata.png import encode_png
from zimage_studio.core.sheet import draw_sheet
from zimage_studio.errors import BusyError, Cancelled, UserError
from zimage_studio.records.grid import Cell, GridPlan
from zimage_studio.records.memory import parse_profile
from zimage_studio.services.files import replace_durably
from zimage_studio.services.generation import GenerationJob, GenerationService
from zimage_studio.services.images import ImageStore, StoredImage
from zimage_studio.services.watched import State, View, Watched

log = logging.getLogger(__name__)

Images = Mapping[tuple[int, int], StoredImage]
"""(column, row) to the image made for that cell."""
FULL_QUEUE_PAUSE_S = 1.0
KEPT_RUNS = 100
SHOWN_ID_CHARS = 40
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class GridView(View):
    """One moment of a grid. `images` maps (column, row) to the image made for that cell.

    `job` is the cell being made; `seconds_left` is for the whole grid, None until one cell has been timed.
    """

    images: Images = field(default_factory=dict)
    total: int = 0
    job: GenerationJob | None = None
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        """How many cells are there."""
        return len(self.images)


class Grid(Watched[GridView, GridView]):
    """A plan and how far it has come."""

    def __init__(self, grid_id: str, plan: GridPlan, session: str, images: Images) -> None:
        state: State = "done" if len(images) == len(plan.cells) else "stopped"
        super().__init__(GridView(state=state, images=dict(images), total=len(plan.cells)), session, grid_id)
        self.plan = plan

    def stop(self) -> None:
        """Ask the grid to end at the next step of the cell being made. What is made stays. Idempotent."""
        super().stop()
        if (job := self.view.job) is not None:
            job.stop()

    def outcome(self, view: GridView) -> GridView:
        """The last view."""
        return view

    def end(self, state: State, **changes: object) -> None:
        """Move on to the last view."""
        super().end(state, job=None, seconds_left=None, **changes)


class GridService:
    """Makes grids through the generation service, a cell at a time, so that others get their turn in between."""

    def __init__(self, folder: Path, generation: GenerationService, images: ImageStore) -> None:
        self._folder = folder
        self._generation = generation
        self._images = images
        self._grids: dict[str, Grid] = {}
        self._lock = threading.Lock()

    def start(self, plan: GridPlan, *, session: str = "local") -> Grid:
        """Keep the plan and begin. Raises BusyError when a grid of this session is running, or no space."""
        self._refuse_second(session)
        self._images.check_space()
        grid = Grid(secrets.token_hex(8), plan, session, {})
        (self._folder / grid.id).mkdir(parents=True)
        replace_durably(self._folder / grid.id / "plan.json", plan.to_json().encode())
        return self._run_in_background(grid)

    def resume(self, grid_id: str, *, session: str = "local") -> Grid:
        """Make the cells that are missing. Nothing happens to a grid that is whole or running."""
        grid = self.get(grid_id)
        if grid.view.state in ("running", "done"):
            return grid
        self._refuse_second(session)
        return self._run_in_background(Grid(grid.id, grid.plan, session, grid.view.images))

    def get(self, grid_id: str) -> Grid:
        """The grid `grid_id`, also of an earlier run of Studio. Raises UserError when there is none."""
        if not _ID.fullmatch(grid_id):  # also what is too long for a file name
            raise UserError("unknown_grid", value=grid_id[:SHOWN_ID_CHARS])
        with self._lock:
            grid = self._grids.get(grid_id)
        if grid is not None and grid.view.state == "running":
            return grid
        folder = self._folder / grid_id
        if not (folder / "plan.json").is_file():
            raise UserError("unknown_grid", value=grid_id)
        if grid is not None:
            return grid
        try:
            plan = GridPlan.from_json((folder / "plan.json").read_text("utf-8"))
        except ValueError as error:
            raise UserError("grid_damaged", value=grid_id, why=error) from error
        return Grid(grid_id, plan, "", self._made(grid_id))

    def list(self, newest: int | None = None) -> tuple[Grid, ...]:
        """All grids that can be read, newest first; at most `newest` of them."""
        plans = sorted(self._folder.glob("*/plan.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        found = []
        for path in plans[:newest]:
            try:
                found.append(self.get(path.parent.name))
            except UserError as error:
                log.warning("a grid is left out: %s", error)
        return tuple(found)

    def sheet(self, grid: Grid) -> Path:
        """A PNG with all cells and their labels, made anew from what is there."""
        plan, cells = grid.plan, {}
        for place, stored in grid.view.images.items():
            if stored.path.exists():
                with Image.open(stored.path) as image:
                    cells[place] = image.convert("RGB")
        pixels = draw_sheet(cells, _labels(plan, "x"), _labels(plan, "y"))
        path = self._folder / grid.id / "sheet.png"
        replace_durably(path, encode_png(pixels, {"zimage_studio_grid": plan.to_json()}))
        return path

    def close(self) -> None:
        """Stop what runs; it can be resumed."""
        with self._lock:
            running = [grid for grid in self._grids.values() if not grid.view.finished]
        for grid in running:
            grid.stop()

    def _refuse_second(self, session: str) -> None:
        with self._lock:
            if any(grid.session == session and not grid.view.finished for grid in self._grids.values()):
                raise BusyError("grid_running")

    def _run_in_background(self, grid: Grid) -> Grid:
        grid.update(state="running")
        with self._lock:
            self._grids[grid.id] = grid
            for old in [key for key, known in self._grids.items() if known.view.finished][:-KEPT_RUNS]:
                del self._grids[old]
        threading.Thread(target=self._run, args=(grid,), name=f"grid-{grid.id}", daemon=True).start()
        return grid

    def _run(self, grid: Grid) -> None:
        with grid.ends_when_raised():
            self._make_missing(grid)
            grid.end("done")

    def _make_missing(self, grid: Grid) -> None:
        missing = [cell for cell in grid.plan.cells if (cell.column, cell.row) not in grid.view.images]
        missing.sort(key=lambda cell: (cell.model, json.dumps(dict(cell.profile))))  # stable: each is loaded once
        seconds: list[float] = []
        for number, cell in enumerate(missing):
            started = time.monotonic()
            image = self._make(grid, cell)
            seconds.append(time.monotonic() - started)
            images = {**grid.view.images, (cell.column, cell.row): image}
            self._note(grid.id, images)
            left = (len(missing) - number - 1) * sum(seconds) / len(seconds)
            grid.update(images=images, job=None, seconds_left=left)

    def _make(self, grid: Grid, cell: Cell) -> StoredImage:
        while True:
            grid.go_on()
            try:
                job = self._generation.submit(
                    cell.request.to_dict(),
                    model=cell.model,
                    session=f"grid-{grid.id}",
                    parent=grid.plan.parent,
                    profile=parse_profile(cell.profile),
                )
            except BusyError as error:
                if error.key == "stopping":
                    raise Cancelled from error
                time.sleep(FULL_QUEUE_PAUSE_S)
                continue
            grid.update(job=job)
            if grid.stopping:
                job.stop()
            (image,) = job.result()
            return image

    def _note(self, grid_id: str, images: Images) -> None:
        made = {f"{column},{row}": image.id for (column, row), image in images.items()}
        replace_durably(self._folder / grid_id / "made.json", json.dumps(made).encode())

    def _made(self, grid_id: str) -> dict[tuple[int, int], StoredImage]:
        """The cells whose images are still in the store."""
        path = self._folder / grid_id / "made.json"
        images: dict[tuple[int, int], StoredImage] = {}
        if not path.exists():
            return images
        for place, image_id in json.loads(path.read_text("utf-8")).items():
            column, row = map(int, place.split(","))
            try:
                images[column, row] = self._images.get(image_id)
            except UserError:
                continue  # deleted: resuming makes it again
        return images


def _labels(plan: GridPlan, which: Literal["x", "y"]) -> list[str]:
    axis = plan.x if which == "x" else plan.y
    if axis is None:
        return [""] * (plan.columns if which == "x" else plan.rows)
    short = axis.field.replace("_", " ")
    return [f"{short}: {value}" for value in axis.values]
