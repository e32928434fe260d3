"""The Compress tab, a path: choose, understand, plan, cut, recover, judge, use; beside it the family and the jobs."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from zimage_studio.records.job import JobRecord
from zimage_studio.services.studio import Studio
from zimage_studio.ui.compress_choose import ChooseCard
from zimage_studio.ui.compress_frame import Card, Frame, Step
from zimage_studio.ui.compress_jobs import JobsCard, NowStrip
from zimage_studio.ui.doors import PRIVATE, Update
from zimage_studio.ui.texts import Texts

TICK_S = 1.0
CARDS: dict[Step, Callable[[Frame], Card]] = {}
"""The card of each step, in the order of the path."""


class CompressTab:
    """Widgets and wiring. Nothing ticks while another tab is shown; all is read anew when the tab is opened."""

    def __init__(self, studio: Studio, tabs: gr.Tabs, tab: gr.Tab, t: Texts) -> None:
        self._studio = studio
        self._t = t
        with gr.Row(elem_classes="zs-columns zs-compress", equal_height=False):
            with gr.Column(scale=0, min_width=300, elem_classes="zs-controls"):
                with gr.Column(elem_classes="zs-box"):
                    self._choose = ChooseCard(studio, t)
                with gr.Column(elem_classes="zs-box zs-jobs-box"):
                    self._jobs = JobsCard(studio, t)
            with gr.Column(scale=1, min_width=300, elem_classes="zs-stage-column"):
                self._now = NowStrip(studio, t)
                with gr.Tabs(elem_classes="zs-sub", elem_id="zs-path") as steps:
                    frame = Frame(studio, t, self._choose.model, steps, tabs, gr.State(""))
                    self._cards = self._add_cards(frame)
        self._frame = frame
        self._seen = gr.State("")
        self._timer = gr.Timer(TICK_S, active=False)
        self._choose.offer(frame)
        self._jobs.wire(frame)
        self._wire(tabs, tab)

    def _add_cards(self, frame: Frame) -> tuple[Card, ...]:
        cards = []
        for number, (step, card) in enumerate(CARDS.items(), 2):
            label = self._t("compress_step", number=number, name=self._t(f"compress_step_{step}"))
            with gr.Tab(label, id=step, render_children=True), gr.Column(elem_classes="zs-box"):
                cards.append(card(frame))
        return tuple(cards)

    @property
    def _outputs(self) -> list[Any]:
        parts = [*self._choose.outputs, *self._jobs.outputs, *self._now.outputs, self._seen]
        return [*parts, *(output for card in self._cards for output in card.outputs)]

    def _wire(self, tabs: gr.Tabs, tab: gr.Tab) -> None:
        name, frame = self._t("tab_compress"), self._frame

        def on_tabs(event: gr.SelectData) -> Any:
            return gr.Timer(active=event.value == name)

        def on_open(model: object, fresh: str) -> Update:
            chosen = self._choose.known(model)
            return {**self._choose.shown(chosen), **self._everything(chosen, fresh)}

        def on_model(model: object, fresh: str) -> Update:
            return {**self._choose.told(model), **self._of_cards(self._cards, str(model or ""), fresh)}

        def on_tick(model: object, fresh: str, seen: str, picked: str) -> Update:
            return self._tick(str(model or ""), fresh, seen, picked)

        tabs.select(on_tabs, None, self._timer, **PRIVATE)
        tab.select(on_open, [frame.model, frame.fresh], self._outputs, **PRIVATE)
        frame.model.change(on_model, [frame.model, frame.fresh], self._outputs, trigger_mode="always_last", **PRIVATE)
        inputs = [frame.model, frame.fresh, self._seen, self._jobs.picked]
        self._timer.tick(on_tick, inputs, self._outputs, **PRIVATE)

    def _tick(self, model: str, fresh: str, seen: str, picked: str) -> Update:
        """The progress always; list and cards only when something began or ended: a click must find its button."""
        jobs = self._studio.jobs.list()
        mark = _mark(jobs)
        shown: Update = {**self._now.shown(jobs), **self._jobs.log(picked, jobs)}
        if mark == seen:
            return {**shown, **self._live(jobs)}
        ended = _ended(seen, jobs)
        cards = [card for card in self._cards if any(job.kind in card.kinds for job in ended)]
        choices = self._choose.listed(model) if ended else {}
        return {
            **shown, **self._jobs.shown(jobs), **choices, **self._of_cards(cards, model, fresh), **self._live(jobs),
            self._seen: mark,
        }  # fmt: skip

    def _everything(self, model: str, fresh: str) -> Update:
        jobs = self._studio.jobs.list()
        shown = {**self._now.shown(jobs), **self._jobs.shown(jobs), self._seen: _mark(jobs)}
        return {**shown, **self._of_cards(self._cards, model, fresh), **self._live(jobs)}

    def _of_cards(self, cards: Sequence[Card], model: str, fresh: str) -> Update:
        return {widget: update for card in cards for widget, update in card.shown(model, fresh).items()}

    def _live(self, jobs: Sequence[JobRecord]) -> Update:
        """What the cards show of the job that runs."""
        running = next((job for job in jobs if job.state in ("running", "stopping")), None)
        if running is None:
            return {}
        return {w: u for card in self._cards if running.kind in card.kinds for w, u in card.live(running).items()}


def _mark(jobs: Sequence[JobRecord]) -> str:
    """Changes when a job begins, ends or is forgotten."""
    return " ".join(f"{job.id}:{job.state}" for job in jobs)


def _ended(seen: str, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs that have ended since the list looked like `seen`."""
    before = dict(entry.split(":") for entry in seen.split())
    return [job for job in jobs if job.finished and before.get(job.id) != job.state]
