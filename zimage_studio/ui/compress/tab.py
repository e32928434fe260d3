"""The Compress tab, a path: choose, understand, plan, cut, recover, judge, use; beside it the family and the jobs."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from zimage_studio.records.job import JobRecord
from zimage_studio.services.studio import Studio
from zimage_studio.ui.compress.choose import ChooseCard
from zimage_studio.ui.compress.cut import CutCard
from zimage_studio.ui.compress.frame import STEPS, Card, Frame, Step
from zimage_studio.ui.compress.jobs import JobsCard, NowStrip
from zimage_studio.ui.compress.judge import JudgeCard
from zimage_studio.ui.compress.plan import PlanCard
from zimage_studio.ui.compress.recover import RecoverCard
from zimage_studio.ui.compress.understand import UnderstandCard
from zimage_studio.ui.compress.use import UseCard
from zimage_studio.ui.doors import PRIVATE, Update
from zimage_studio.ui.texts import Texts

TICK_S = 1.0
CARDS: dict[Step, Callable[[Frame], Card]] = {
    "understand": UnderstandCard,
    "plan": PlanCard,
    "cut": CutCard,
    "recover": RecoverCard,
    "judge": JudgeCard,
    "use": UseCard,
}
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
                plan = gr.Dropdown(
                    [], value=None, label=t("plan_pick"), filterable=False, min_width=160, render=False,
                    elem_id="zs-plan-pick",
                )  # fmt: skip
                fresh = gr.State("")  # not among the tabs: Gradio would count it as one of them
                with gr.Tabs(elem_classes="zs-sub", elem_id="zs-path") as steps:
                    frame = Frame(studio, t, self._choose.model, steps, tabs, fresh, plan)
                    self._cards = self._add_cards(frame)
        self._frame = frame
        self._seen = gr.State("")
        self._timer = gr.Timer(TICK_S, active=False)
        self._choose.offer(frame)
        self._jobs.wire(frame)
        self._wire(tabs, tab)

    @property
    def use(self) -> tuple[gr.Button, gr.Dropdown]:
        """The button of the last step, and the model that it means."""
        button = next(card.button for card in self._cards if isinstance(card, UseCard))
        return button, self._frame.model

    def _add_cards(self, frame: Frame) -> tuple[Card, ...]:
        cards = []
        for step, card in CARDS.items():
            label = self._t("compress_step", number=STEPS.index(step) + 2, name=self._t(f"compress_step_{step}"))
            with gr.Tab(label, id=step, render_children=True), gr.Column(elem_classes="zs-box"):
                cards.append(card(frame))
        return tuple(cards)

    @property
    def _outputs(self) -> list[Any]:
        parts = [*self._choose.outputs, *self._jobs.outputs, *self._now.outputs, self._seen]
        shared = [self._frame.plan, self._frame.fresh]
        return [*parts, *shared, *(output for card in self._cards for output in card.outputs)]

    def _wire(self, tabs: gr.Tabs, tab: gr.Tab) -> None:
        name, frame = self._t("tab_compress"), self._frame

        def on_tabs(event: gr.SelectData) -> Any:
            return gr.Timer(active=event.value == name)

        def on_open(model: object, fresh: str, plan: object) -> Update:
            chosen = self._choose.known(model)
            jobs = self._studio.jobs.list()
            return {
                **self._choose.shown(chosen), **self._now.shown(jobs), **self._jobs.shown(jobs),
                **self._of_cards(self._cards, chosen, fresh, plan, jobs), self._seen: _mark(jobs),
            }  # fmt: skip

        def on_model(model: object, fresh: str, plan: object) -> Update:
            jobs = self._studio.jobs.list()
            return {**self._choose.told(model), **self._of_cards(self._cards, str(model or ""), fresh, plan, jobs)}

        def on_tick(model: object, fresh: str, plan: object, seen: str, picked: str) -> Update:
            return self._tick(str(model or ""), fresh, plan, seen, picked)

        tabs.select(on_tabs, None, self._timer, **PRIVATE)
        chosen = [frame.model, frame.fresh, frame.plan]
        tab.select(on_open, chosen, self._outputs, **PRIVATE)
        changes = [frame.model.change, frame.fresh.change]
        gr.on(changes, on_model, chosen, self._outputs, trigger_mode="always_last", **PRIVATE)
        self._timer.tick(on_tick, [*chosen, self._seen, self._jobs.picked], self._outputs, **PRIVATE)

    def _tick(self, model: str, fresh: str, plan: object, seen: str, picked: str) -> Update:
        """The progress always; list and cards only when something began or ended: a click must find its button."""
        jobs = self._studio.jobs.list()
        mark = _mark(jobs)
        shown: Update = {**self._now.shown(jobs), **self._jobs.log(picked, jobs), **self._live(jobs)}
        if mark == seen:
            return shown
        changed = {job.kind for job in _changed(seen, jobs)}
        cards = [card for card in self._cards if card.kinds & changed]
        return {
            **shown, **self._jobs.shown(jobs), **self._choose.listed(model),
            **self._of_cards(cards, model, fresh, plan, jobs), self._seen: mark,
        }  # fmt: skip

    def _of_cards(
        self, cards: Sequence[Card], model: str, fresh: str, plan: object, jobs: Sequence[JobRecord]
    ) -> Update:
        """The cards as they are now; what came out of the fresh job has then been shown."""
        updates = {widget: update for card in cards for widget, update in card.shown(model, fresh).items()}
        for card in cards:
            if isinstance(card, PlanCard):
                updates |= card.listed(model, fresh, plan)
        if any(job.id == fresh and job.finished for job in jobs):
            updates[self._frame.fresh] = ""
        return {**updates, **self._live(jobs)}

    def _live(self, jobs: Sequence[JobRecord]) -> Update:
        """What the cards show of the job that runs."""
        running = next((job for job in jobs if job.state in ("running", "stopping")), None)
        if running is None:
            return {}
        return {w: u for card in self._cards if running.kind in card.kinds for w, u in card.live(running).items()}


def _mark(jobs: Sequence[JobRecord]) -> str:
    """Changes when a job begins, ends or is forgotten."""
    return " ".join(f"{job.id}:{job.state}" for job in jobs)


def _changed(seen: str, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs that began or ended since the list looked like `seen`."""
    before = dict(entry.split(":") for entry in seen.split())
    return [job for job in jobs if before.get(job.id) != job.state]
