"""The measuring card of the Memory tab: choose profiles, watch, read the table, hand it over."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile
from zimage_studio.services.measuring import MeasureJob
from zimage_studio.services.memory import MemoryService
from zimage_studio.services.studio import Studio
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, session_of
from zimage_studio.ui.memory import table as memory_table
from zimage_studio.ui.memory.profile import DOWNLOAD, IN_USE, profile_choices
from zimage_studio.ui.memory.widgets import Measuring, Planner, add_measuring
from zimage_studio.ui.texts import Texts

WATCH_S = 5.0
COMPARED_FIRST = "chunked"
"""Measured beside the profile in use until a person chooses."""


class MeasureCard:
    """Widgets and wiring of measuring."""

    def __init__(self, studio: Studio, planner: Planner, t: Texts) -> None:
        self._memory: MemoryService = studio.memory
        self._t = t
        choices = profile_choices(self._memory, t)
        used = next((name for name, known in self._memory.profiles().items() if known == self._memory.profile), IN_USE)
        first = list(dict.fromkeys((EXACT.name, used, COMPARED_FIRST)))[:2]
        self._card: Measuring = add_measuring(choices, first, t)
        self._file = gr.Textbox("", visible=False)
        self._wire_run(planner)
        self._wire_kept()

    @property
    def outputs(self) -> list[Any]:
        """What a run changes, and the profiles to choose from."""
        return [*self._card.outputs, self._card.profiles]

    def opened(self) -> Update:
        """As it is when the tab is opened: the newest measuring, and the profiles there are."""
        job = self._memory.measuring
        runs = self._runs()
        shown = memory_table.measured(runs[0] if runs else (), self._t)
        idle = job is None or job.view.finished
        return {
            self._card.profiles: gr.update(choices=profile_choices(self._memory, self._t)),
            **({self._card.result: shown} if idle else {}),
            **self._kept(runs, runs[0][0].job if runs else ""),
        }

    def watch(self) -> Iterator[Update]:
        """A measuring that runs already, whoever began it."""
        job = self._memory.measuring
        if job is None or job.view.finished:
            yield {self._card.progress: gr.skip()}  # a generator without a yield would empty every output
            return
        yield from self._watch(job)

    def _wire_run(self, planner: Planner) -> None:
        card, t = self._card, self._t

        def on_measure(
            request: gr.Request, names: object, prompt: object, width: object, height: object, guidance: object
        ) -> Iterator[Update]:
            values = {"prompt": prompt, "width": width, "height": height, "guidance": guidance}
            with errors_as_toasts(t):
                job = self._memory.measure(self._chosen(names), values, session=session_of(request))
            yield from self._watch(job)

        def on_stop() -> None:
            if (job := self._memory.measuring) is not None:
                job.stop()

        inputs = [card.profiles, card.prompt, *planner.picture]
        card.start.click(on_measure, inputs, card.outputs, trigger_mode="once", **PRIVATE)
        card.stop.click(on_stop, None, None, **PRIVATE)

    def _wire_kept(self) -> None:
        card, t = self._card, self._t

        def on_earlier(run: object) -> Any:
            return memory_table.measured(next((rows for rows in self._runs() if rows[0].job == run), ()), t)

        def on_csv() -> str:
            return json.dumps(["memory_measurements.csv", "text/csv", self._memory.export_rows("csv")])

        def on_json() -> str:
            return json.dumps(["memory_measurements.json", "application/json", self._memory.export_rows("json")])

        card.earlier.input(on_earlier, card.earlier, card.result, **PRIVATE)
        for button, handler in ((card.csv, on_csv), (card.json, on_json)):
            button.click(handler, None, self._file, **PRIVATE).success(None, self._file, None, js=DOWNLOAD, **LOCAL)

    def _chosen(self, names: object) -> list[MemoryProfile]:
        """The profiles by name. Raises InvalidInputError."""
        if not isinstance(names, list):
            raise InvalidInputError("bad_choice", field="profile", value=names, known=", ".join(PRESETS))
        return [self._memory.profile if name == IN_USE else self._memory.find(name) for name in names]

    def _watch(self, job: MeasureJob) -> Iterator[Update]:
        card, t = self._card, self._t
        yield {card.start: gr.update(interactive=False), card.stop: gr.update(interactive=True), card.result: ""}
        view = job.view
        while not view.finished:
            rows = memory_table.measured(view.rows, t) if view.rows else ""
            yield {card.progress: memory_table.progress(view, t), card.result: rows}
            view = job.wait_change(view.version, WATCH_S)
        runs = self._runs()
        yield {
            card.start: gr.update(interactive=True),
            card.stop: gr.update(interactive=False),
            card.progress: memory_table.progress(view, t),
            card.result: memory_table.measured(view.rows, t),
            **self._kept(runs, job.id if view.rows else ""),
        }

    def _runs(self) -> list[list[MeasuredRow]]:
        """What was kept, newest measuring first, each in the order in which it was measured."""
        rows = self._memory.rows()
        return [list(run)[::-1] for _, run in itertools.groupby(rows, key=lambda row: row.job)]

    def _kept(self, runs: list[list[MeasuredRow]], chosen: str) -> Update:
        card = self._card
        choices = [(memory_table.listed(rows, self._t), rows[0].job) for rows in runs]
        return {
            card.earlier: gr.update(choices=choices, value=chosen or None, visible=bool(choices)),
            card.exports: gr.update(visible=bool(choices)),
        }
