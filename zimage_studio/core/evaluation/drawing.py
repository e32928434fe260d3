"""Draw each column through the engine that Generate uses, one model in memory at a time; then time them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zimage_studio.core.engine import LoadedModel, TorchEngine
from zimage_studio.core.evaluation import rounding
from zimage_studio.core.evaluation.meter import Meter
from zimage_studio.core.evaluation.pictures import PictureStore
from zimage_studio.core.evaluation.subjects import Entrant
from zimage_studio.core.evaluation.timing import interleaved
from zimage_studio.core.memory.host import ram
from zimage_studio.core.sampling import count_tokens
from zimage_studio.errors import NonFiniteError
from zimage_studio.records.memory import MemoryProfile
from zimage_studio.records.progress import Progress
from zimage_studio.records.report import Column
from zimage_studio.records.request import GenerationRequest

GREY = 128
ROOM = 0.9
"""Share of the free memory that models kept side by side may take."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Atelier:
    """What draws, and for whom: the requests in order, the models by column (the quantised one is the parent)."""

    engine: TorchEngine
    entrants: Mapping[Column, Entrant]
    requests: Sequence[GenerationRequest]
    store: PictureStore
    meter: Meter
    profile: MemoryProfile
    parts: Path | None = None
    chosen: Mapping[str, rounding.Kind] | None = None

    # --- pictures -----------------------------------------------------------------------------------------------

    def draw(self, column: Column) -> None:
        """All pictures of `column` that are not there yet, and its facts."""
        missing = [i for i in range(len(self.requests)) if self.store.read(column, i) is None]
        if not missing and self.store.facts(column) is not None:
            self.meter.tick("note.evaluate_drawing", self.units)
            return
        model = self.load(column)
        self.meter.tick("note.evaluate_drawing", len(self.requests) - len(missing))
        for index in missing:
            self.store.keep(column, index, self._picture(model, index))
            self.meter.tick("note.evaluate_drawing")
        self.store.keep_facts(column, self._facts(column, model))
        self.meter.tick("note.evaluate_measuring", 2)

    @property
    def units(self) -> int:
        """How much work a column is: its pictures, and two for measuring memory."""
        return len(self.requests) + 2

    def load(self, column: Column) -> LoadedModel:
        """The model of `column`, rounded for the quantised one. The engine must hold no other for its memory's sake."""
        watched = self.meter.within("note.evaluate_loading", 0)
        model = self.engine.load(self.entrants[column].artifact, self.parts, watched, self.profile)
        if column == "quantised" and self.chosen:
            rounding.round_layers(model.pipeline.transformer, self.chosen)
            self.engine.collect()
        return model

    def _picture(self, model: LoadedModel, index: int) -> Pixels:
        """A picture that the model could not finish is grey: it counts, as the worst that there is."""
        request = self.requests[index]
        try:
            return self.engine.draw(model, request, self.meter.within("note.evaluate_drawing")).pixels_HWC
        except NonFiniteError:
            return np.full((request.height, request.width, 3), GREY, dtype=np.uint8)

    def _facts(self, column: Column, model: LoadedModel) -> dict[str, float]:
        """Peak and resident weights in bytes, tokens of the longest prompt; of a rounded model its real bytes."""
        facts: dict[str, float] = {
            "weights_bytes": self.engine.weights_bytes(model),
            "caption_tokens": max(count_tokens(model.pipeline, request.prompt) for request in self.requests),
        }
        if column == "quantised" and self.chosen:
            facts["rounded_bytes"] = rounding.rounded_bytes(model.pipeline.transformer, self.chosen)
        try:
            found, _ = self.engine.measure(model, self.requests[0], self.meter.within("note.evaluate_measuring", 2))
        except NonFiniteError:
            return facts
        return facts | {"peak_bytes": max(found.phase_peak_bytes.values())}

    # --- time ---------------------------------------------------------------------------------------------------

    def time(self, columns: Sequence[Column], repeats: int) -> tuple[dict[Column, list[float]], bool]:
        """Seconds by column, and whether all were in memory together. Raises NonFiniteError."""
        together = self._fit(columns)
        seconds: dict[Column, list[float]] = {}
        for group in [columns] if together else [[column] for column in columns]:
            seconds |= self._time_group(group, repeats)
            self.engine.collect()
        return seconds, together

    def _time_group(self, columns: Sequence[Column], repeats: int) -> dict[Column, list[float]]:
        draws = {column: self._drawer(self.load(column)) for column in columns}
        return interleaved(draws, repeats, lambda: self.meter.tick("note.evaluate_timing"))

    def _drawer(self, model: LoadedModel) -> Callable[[int], object]:
        watched: Progress = self.meter.within("note.evaluate_timing", 0)
        return lambda number: self.engine.draw(model, self.requests[number % len(self.requests)], watched)

    def _fit(self, columns: Sequence[Column]) -> bool:
        facts = [self.store.facts(column) or {} for column in columns]
        weights = [fact.get("weights_bytes", 0) for fact in facts]
        work = max(fact.get("peak_bytes", 0) - weight for fact, weight in zip(facts, weights, strict=True))
        free = _free_bytes(self.engine.device())
        return free is not None and sum(weights) + max(0, work) < ROOM * free


def _free_bytes(device: str) -> int | None:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return ram()[1]
