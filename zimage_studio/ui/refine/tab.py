"""The Refine tab: begin with an image, change what you like, keep the rest; variations and grids around it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, session_of, shown, uploaded
from zimage_studio.ui.family import pick_of
from zimage_studio.ui.picker import picked
from zimage_studio.ui.refine.base import NOISE, Base, Bases, shown_values
from zimage_studio.ui.refine.grid_watch import owner, visible_grid
from zimage_studio.ui.refine.quick import quick_updates, quick_values
from zimage_studio.ui.refine.run import RefineRuns
from zimage_studio.ui.refine.stage import RefineStage
from zimage_studio.ui.refine.widgets import CHANGE, add_asked, add_held, add_shown
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.trail import Step, onward, read_trail, written

MAX_DROPPED = 8
_SCROLL = """() => setTimeout(() => {
  const place = document.querySelector("%s")?.getBoundingClientRect();
  if (place && (place.top < 0 || place.top > innerHeight / 2)) scrollBy({top: place.top - 8, behavior: "smooth"});
}, 150)"""
"""Where it is not in view already."""
SCROLL_TO_BASE, SCROLL_TO_STAGE = _SCROLL % "#zs-base", _SCROLL % "#zs-refine-result"
SCROLL_TO_OPENED = _SCROLL % "#zs-result-changes, .zs-refine:not(:has(#zs-result-changes)) #zs-base"
CLICK_SHEET = '() => setTimeout(() => document.querySelector("#zs-sheet-file").click(), 100)'


class RefineTab:
    """Widgets and wiring. Other tabs hand an image over with `offer`."""

    def __init__(self, studio: Studio, tabs: gr.Tabs, tab: gr.Tab, t: Texts) -> None:
        self._studio = studio
        self._tabs = tabs
        self._t = t
        self._held = add_held()
        models = studio.models.list()
        default = next((model for model in models if model.key == studio.settings.model), models[0])
        with gr.Row(elem_classes="zs-columns zs-refine", equal_height=False):
            with gr.Column(scale=0, min_width=300, elem_classes="zs-controls"):
                self._asked = add_asked(models, default, t)
            with gr.Column(scale=1, min_width=300, elem_classes="zs-stage-column"):
                self._out = add_shown(t)
        self._bases = Bases(studio, t)
        self._stage = RefineStage(studio, self._out, self._bases, t)
        self._runs = RefineRuns(studio, self._asked, self._out, self._held, self._stage, t)
        self._wire_ways(tab)
        self._wire_form()
        self._wire_runs()
        self._wire_results()

    @property
    def visitor(self) -> gr.Textbox:
        """To be filled with grid_watch.VISITOR_JS when the page is opened."""
        return self._held.visitor

    def offer(self, button: gr.Button, image_id: gr.State) -> None:
        """Let `button` of another tab bring the image `image_id` here."""

        def on_offer(request: gr.Request, chosen: object, dropped: object) -> Update:
            with errors_as_toasts(self._t):
                base = self._bases.of_image(self._studio.images.get(str(chosen)))
                self._runs.turn(session_of(request))
                return {
                    **self._arrived(base, [Step(base.ref)], _dropped(dropped)),
                    self._tabs: gr.update(selected="refine"),
                }

        button.click(on_offer, [image_id, self._held.dropped], [*self._base_outputs, self._tabs], **PRIVATE)

    @property
    def _base_outputs(self) -> list[Any]:
        held = self._held
        return [self._out.card, *self._runs.outputs, *self._asked.outputs, held.trail, held.dropped]

    def _wire_ways(self, tab: gr.Tab) -> None:
        asked, held, outputs = self._asked, self._held, self._base_outputs

        def on_open(request: gr.Request, visitor: object) -> Update:
            who = owner(visitor, session_of(request))
            return {**asked.picker.newest(self._studio), asked.earlier: self._runs.earlier(who)}

        def on_drop(request: gr.Request, file: object, dropped: object) -> Update:
            with errors_as_toasts(self._t):
                base = self._bases.of_file(*uploaded(file))
            self._runs.turn(session_of(request))
            known = {**_dropped(dropped), **({} if base.image is not None else {base.ref: base})}
            kept = dict(list(known.items())[-MAX_DROPPED:])
            return {**self._arrived(base, [Step(base.ref)], kept), held.dropped: kept}

        def on_recent(request: gr.Request, ids: list[str], dropped: object, event: gr.SelectData) -> Update:
            with errors_as_toasts(self._t):
                base = self._bases.of_image(self._studio.images.get(picked(ids, event.index)))
            self._runs.turn(session_of(request))
            return self._arrived(base, [Step(base.ref)], _dropped(dropped))

        scroll = {"fn": None, "inputs": None, "outputs": None, "js": SCROLL_TO_BASE, **LOCAL}
        tab.select(on_open, held.visitor, [*asked.picker.outputs, asked.earlier], **PRIVATE)
        asked.picker.drop.upload(on_drop, [asked.picker.drop, held.dropped], outputs, **PRIVATE).success(**scroll)
        asked.picker.recent.select(on_recent, [asked.picker.ids, held.dropped], outputs, **PRIVATE).success(**scroll)

    def _wire_form(self) -> None:
        asked, form, t = self._asked, self._asked.form, self._t
        inputs = [self._held.trail, self._held.dropped, *form.widgets]

        def on_edit(trail: object, dropped: object, *widgets: Any) -> Update:
            try:
                base = self._base(trail, dropped)
            except UserError:
                base = None  # gone; whoever presses Make is told
            return form.mark(form.held(widgets), base, t)

        def on_start(start: object) -> list[Any]:
            return [gr.update(visible=start != NOISE)] * 2

        def on_undo(trail: object, dropped: object) -> Update:
            with errors_as_toasts(t):
                base = self._base(trail, dropped)
            return {} if base is None else self._form_of(base)

        gr.on(form.edits, on_edit, inputs, [form.marks, form.undo], trigger_mode="always_last", **PRIVATE)
        form.own["start"].input(on_start, form.own["start"], [form.own["strength"], form.strength_note], **PRIVATE)
        form.undo.click(on_undo, [self._held.trail, self._held.dropped], form.outputs, **PRIVATE)
        outputs = [*form.outputs, asked.quick_note]
        for number, button in enumerate(asked.quick):
            button.click(self._quick(number), inputs, outputs, **PRIVATE)
        asked.axes.wire(form.widgets, form.held, self._studio.models.list, t)

    def _wire_runs(self) -> None:
        asked, held, runs = self._asked, self._held, self._runs
        around = [asked.spread, asked.side]
        inputs = [asked.mode, held.trail, held.dropped, held.visitor, *around, *asked.axes.widgets, *asked.form.widgets]

        def on_make(
            request: gr.Request, mode: object, trail: object, dropped: object, visitor: object, *widgets: Any
        ) -> Iterator[Update]:
            page, form = session_of(request), asked.form.held(widgets[6:])
            with errors_as_toasts(self._t):
                base = self._base(trail, dropped)
                if mode == CHANGE:
                    yield from runs.one(form, base, page)
                else:
                    plan = runs.plan(mode, form, base, widgets[:2], widgets[2:6])
                    yield from runs.start(plan, page, owner(visitor, page))

        def on_made(trail: object, dropped: object) -> Update:
            strip = asked.picker.newest(self._studio)
            with errors_as_toasts(self._t):
                base = self._base(trail, dropped)
                return strip if base is None else {**strip, **self._card(base, trail, dropped)}

        def on_stop(request: gr.Request, visitor: object) -> None:
            page = session_of(request)
            runs.stop(page, owner(visitor, page))

        def on_resume(request: gr.Request, grid: str, visitor: object) -> Iterator[Update]:
            page = session_of(request)
            with errors_as_toasts(self._t):
                yield from runs.resume(str(grid), page, owner(visitor, page))

        scroll = {"fn": None, "inputs": None, "outputs": None, "js": SCROLL_TO_STAGE, **LOCAL}
        made = asked.make.click(on_make, inputs, runs.outputs, trigger_mode="once", **PRIVATE)
        made.then(on_made, [held.trail, held.dropped], [self._out.card, *asked.picker.outputs], **PRIVATE)
        asked.make.click(**scroll)
        asked.stop.click(on_stop, held.visitor, None, **PRIVATE)
        self._out.resume.click(on_resume, [held.grid, held.visitor], runs.outputs, trigger_mode="once", **PRIVATE)
        asked.earlier.input(self._open_grid, [asked.earlier, held.dropped, held.visitor], self._base_outputs, **PRIVATE)

    def _wire_results(self) -> None:
        out, held = self._out, self._held
        way = [held.trail, held.dropped, held.grid, held.visitor]

        def on_pick(
            request: gr.Request, trail: object, dropped: object, grid: object, visitor: object, event: gr.EventData
        ) -> Iterator[Update]:
            with errors_as_toasts(self._t):
                yield from self._go(request, pick_of(event), trail, dropped, grid, visitor)

        def on_enter(
            request: gr.Request, result: object, trail: object, dropped: object, grid: object, visitor: object
        ) -> Iterator[Update]:
            with errors_as_toasts(self._t):
                yield from self._go(request, str(result), trail, dropped, grid, visitor)

        def on_cell(
            request: gr.Request, trail: object, dropped: object, grid: object, visitor: object, event: gr.EventData
        ) -> Iterator[Update]:
            with errors_as_toasts(self._t):
                image = self._studio.images.get(pick_of(event))
                whole = visible_grid(self._studio, str(grid), owner(visitor, session_of(request)))
                if whole.plan.kind == "neighbourhood":
                    yield from self._go(request, image.id, trail, dropped, grid, visitor)
                else:
                    base = self._base(trail, dropped)
                    yield {**self._stage.opened(image, base, of_grid=True), held.result: image.id}

        def on_sheet(request: gr.Request, grid: str, visitor: object) -> Any:
            with errors_as_toasts(self._t):
                whole = visible_grid(self._studio, str(grid), owner(visitor, session_of(request)))
                return gr.update(value=shown(self._studio.grids.sheet(whole)))

        out.card.click(on_pick, way, self._base_outputs, **PRIVATE)
        out.table.click(on_cell, way, self._base_outputs, **PRIVATE).success(
            None, None, None, js=SCROLL_TO_OPENED, **LOCAL
        )
        out.enter.click(on_enter, [held.result, *way], self._base_outputs, **PRIVATE).success(
            None, None, None, js=SCROLL_TO_BASE, **LOCAL
        )
        out.sheet.click(on_sheet, [held.grid, held.visitor], out.sheet_file, **PRIVATE).success(
            None, None, None, js=CLICK_SHEET, **LOCAL
        )

    # --- where the page is

    def _base(self, trail: object, dropped: object) -> Base | None:
        """The last step of the trail. Raises UserError when it is gone."""
        steps = read_trail(trail)
        return self._bases.find(steps[-1].ref, _dropped(dropped)) if steps else None

    def _card(self, base: Base, trail: object, dropped: object) -> Update:
        return self._stage.card(base, read_trail(trail), _dropped(dropped))

    def _go(
        self, request: gr.Request, ref: str, trail: object, dropped: object, grid: object, visitor: object
    ) -> Iterator[Update]:
        """On to `ref`, or back to it; back also to the grid that was shown there. Raises UserError."""
        page, known = session_of(request), _dropped(dropped)
        base = self._bases.find(ref, known)
        steps = onward(read_trail(trail), base.ref, str(grid or ""))
        self._runs.turn(page)
        arrived, who = self._arrived(base, steps, known), owner(visitor, page)
        if steps[-1].grid and (found := self._seen(steps[-1].grid, who)) is not None:
            yield from self._runs.follow(found, page, who, arrived)
        else:
            yield arrived

    def _seen(self, grid_id: str, who: str) -> Any:
        """A grid that was shown earlier; None when it is gone."""
        try:
            return visible_grid(self._studio, grid_id, who)
        except UserError:
            return None

    def _open_grid(self, request: gr.Request, grid_id: object, dropped: object, visitor: object) -> Iterator[Update]:
        page, known = session_of(request), _dropped(dropped)
        who = owner(visitor, page)
        with errors_as_toasts(self._t):
            grid = visible_grid(self._studio, str(grid_id), who)
            base = self._bases.of_pixels(grid.plan.parent, known)
            if base is not None:
                arrived = self._arrived(base, [Step(base.ref)], known)
            else:
                hidden = {**self._asked.ready(there_is_a_base=False), self._out.card: gr.update(visible=False)}
                arrived = {**hidden, self._held.trail: ""}
            yield from self._runs.follow(grid, page, who, arrived)

    def _arrived(self, base: Base, steps: Sequence[Step], dropped: Mapping[str, Base]) -> Update:
        """The base is shown, and the form holds what it was made with."""
        asked, held = self._asked, self._held
        return {
            **self._stage.base(base, list(steps), dropped),
            **asked.ready(there_is_a_base=True),
            **self._form_of(base),
            **dict(zip(asked.quick, quick_updates(base, self._t), strict=True)),
            asked.quick_note: present.note(self._t("quick_note")),
            asked.picker.drop: None,
            asked.stop: gr.update(interactive=False),
            held.trail: written(steps),
            held.grid: "",
            held.result: "",
        }

    def _form_of(self, base: Base) -> Update:
        shown_form = shown_values(base.values, base.model, base.sha256)
        return self._asked.form.show(shown_form, base, self._studio.models.list(), self._t)

    def _quick(self, number: int) -> Any:
        """What a quick button does: it fills the form, and nothing else."""
        form, t = self._asked.form, self._t

        def on_quick(trail: object, dropped: object, *widgets: Any) -> Update:
            with errors_as_toasts(t):
                base = self._base(trail, dropped)
            wanted, words = quick_values(number, base, t)
            held = {**form.held(widgets), **wanted}
            return {**form.show(held, base, self._studio.models.list(), t), self._asked.quick_note: present.note(words)}

        return on_quick


def _dropped(value: object) -> Mapping[str, Base]:
    return value if isinstance(value, dict) else {}
