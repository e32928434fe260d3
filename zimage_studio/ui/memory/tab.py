"""The Memory tab: what the computer holds now, what fits, the profile and what it really does, the measurements."""

import hashlib
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.services.studio import Studio
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update
from zimage_studio.ui.memory import gauge as memory_gauge
from zimage_studio.ui.memory import view as memory_view
from zimage_studio.ui.memory.measure import MeasureCard
from zimage_studio.ui.memory.profile import ProfileCard, states_for
from zimage_studio.ui.memory.widgets import Planner, add_planner, title
from zimage_studio.ui.texts import Texts

TICK_S = 1.0


class MemoryTab:
    """Widgets and wiring. Nothing ticks while another tab is shown."""

    def __init__(self, studio: Studio, tabs: gr.Tabs, tab: gr.Tab, t: Texts) -> None:
        self._studio = studio
        self._t = t
        models = studio.models.list()
        model = next((model for model in models if model.key == studio.settings.model), models[0])
        with gr.Row(elem_classes="zs-columns zs-memory", equal_height=False):
            with gr.Column(scale=0, min_width=300, elem_classes="zs-controls"):
                with gr.Column(elem_classes="zs-box"):
                    title(t("gauge_title"))
                    self._gauge = gr.HTML(memory_gauge.gauge((), t), elem_id="zs-gauge")
                self._planner: Planner = add_planner(model, t)
            with gr.Column(scale=1, min_width=300, elem_classes="zs-stage-column"), gr.Tabs(elem_classes="zs-sub"):
                with gr.Tab(t("profile_title"), render_children=True), gr.Column(elem_classes="zs-box"):
                    self._profile = ProfileCard(studio, self._planner, t)
                with gr.Tab(t("measure_title"), render_children=True), gr.Column(elem_classes="zs-box"):
                    self._measure = MeasureCard(studio, self._planner, t)
        self._timer = gr.Timer(TICK_S, active=False)
        self._seen = gr.State("")
        self._wire_time(tabs)
        self._wire_planner(tab)
        self._wire_open(tab)

    def _wire_time(self, tabs: gr.Tabs) -> None:
        """Once a second the readouts; what is said of the switches only when the pipeline changed."""
        memory, profile, name = self._studio.memory, self._profile, self._t("tab_memory")

        def on_tabs(event: gr.SelectData) -> Any:
            return gr.Timer(active=event.value == name)

        def on_tick(seen: object, width: object, height: object, pick: object, *widgets: Any) -> Update:
            gauge = {self._gauge: self._readouts()}
            now = self._mark()
            if not seen or now == seen:
                return gauge
            told = profile.told(states_for(memory, width, height), pick, widgets)
            return {**gauge, **told, **profile.choices(), self._seen: now}

        tabs.select(on_tabs, None, self._timer, **PRIVATE)
        outputs = [self._gauge, self._seen, *profile.outputs]
        self._timer.tick(on_tick, [self._seen, *profile.inputs], outputs, **PRIVATE)

    def _wire_planner(self, tab: gr.Tab) -> None:
        planner = self._planner
        picture, outputs = planner.picture, [planner.html, planner.use, planner.choice]
        sides = [planner.width, planner.height]
        planner.sizes.input(None, planner.sizes, sides, js="(size) => size.split('×').map(Number)", **LOCAL)
        for side in sides:
            side.change(None, sides, planner.sizes, js="(w, h) => `${w}×${h}`", **LOCAL)
        changed = [widget.change for widget in picture]
        gr.on([tab.select, *changed], self._plan, picture, outputs, trigger_mode="always_last", **PRIVATE)

    def _plan(self, width: object, height: object, guidance: object) -> Update:
        """What fits now. Whatever is wrong with the numbers is said where the plan would stand."""
        planner = self._planner
        model = self._studio.manager.state.model or None
        try:
            found = self._studio.memory.plan((width, height), model=model, guidance=guidance)  # type: ignore[arg-type]
        except UserError as error:
            return {
                planner.html: memory_view.plan_failed(error.text(self._t.lang)),
                planner.use: gr.update(interactive=False),
            }
        return {
            planner.html: memory_view.plan(found, self._t),
            planner.use: gr.update(interactive=found.fits),
            planner.choice: found.profile.name,
        }

    def _wire_open(self, tab: gr.Tab) -> None:
        memory, profile, measure = self._studio.memory, self._profile, self._measure

        def on_open(seen: object, width: object, height: object, pick: object, *widgets: Any) -> Update:
            states = states_for(memory, width, height)
            if seen:  # what a person was editing stays
                shown = {**profile.told(states, pick, widgets), **profile.choices()}
            else:
                shown = profile.show(memory.profile, states)
            return {**shown, **measure.opened(), self._gauge: self._readouts(), self._seen: self._mark()}

        outputs = [self._gauge, self._seen, *profile.outputs, *measure.outputs]
        tab.select(on_open, [self._seen, *profile.inputs], outputs, **PRIVATE).then(
            measure.watch, None, measure.outputs, **PRIVATE
        )

    def _readouts(self) -> str:
        return memory_gauge.gauge(self._studio.memory.telemetry.recent(), self._t)

    def _mark(self) -> str:
        """Changes when the pipeline, its profile or what was chosen does."""
        manager, memory = self._studio.manager, self._studio.memory
        what = (manager.state.phase, manager.snapshot, memory.profile, memory.saved())
        return hashlib.sha256(repr(what).encode()).hexdigest()


def slim(studio: Studio, t: Texts) -> str:
    """The thin gauge of the header, as it is now."""
    return memory_gauge.slim(studio.memory.telemetry.latest, t)
