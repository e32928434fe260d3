"""Step two, understand: parts of the live model switched off and on, the same seed with and without, and the map."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.records.plan import TransformerShape
from zimage_studio.records.request import MAX_SEED
from zimage_studio.records.sensitivity import MAX_KNOCKS, Knock, SensitivityMap, knock_named
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.compress import heat as compress_heat
from zimage_studio.ui.compress import lab as compress_lab
from zimage_studio.ui.compress.frame import Frame
from zimage_studio.ui.compress.heat import WHOLE, View
from zimage_studio.ui.compress.lab import Lab
from zimage_studio.ui.compress.widgets import (
    PARTS,
    LabBoard,
    LabForm,
    LabPicture,
    add_lab_board,
    add_lab_form,
    add_lab_picture,
)
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, session_of
from zimage_studio.ui.texts import Texts

MAX_PLACE_CHARS, MAX_NUMBER = 40, 1e15
IN_TURN: dict[str, Any] = {**PRIVATE, "concurrency_limit": 1}
"""For clicks: each is told, one at a time; what Gradio defers ("always_last") has the data of the click before."""
SCROLL = """() => { if (innerWidth <= 860) setTimeout(() =>
    document.querySelector("#zs-lab-stage")?.scrollIntoView({behavior: "smooth", block: "center"}), 100); }"""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model: its shape or why it has none, and its newest map."""

    shape: TransformerShape | None
    why: str = ""
    heat: SensitivityMap | None = None


class UnderstandCard:
    """The board on the left, the picture with and without on the right."""

    kinds: frozenset[JobKind] = frozenset({"sensitivity"})

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._studio: Studio = frame.studio
        self._t: Texts = frame.t
        self._lab = Lab(frame.studio, frame.t)
        gr.HTML(present.note(frame.t("lab_intro")))
        self._sorry = gr.HTML(visible=False, elem_id="zs-lab-sorry")
        with gr.Column(elem_classes="zs-lab-room") as self._room:
            self._form: LabForm = add_lab_form(frame.studio, frame.t)
            with gr.Row(elem_classes="zs-lab", equal_height=False):
                with gr.Column(scale=1, min_width=300, elem_classes="zs-lab-board"):
                    self._board: LabBoard = add_lab_board(frame.t)
                with gr.Column(scale=1, min_width=280, elem_classes="zs-lab-picture"):
                    self._picture: LabPicture = add_lab_picture(frame.t)
        self._mark = gr.State("")
        """The model and its newest map; when it changes the board is drawn anew."""
        self._seen = gr.State("")
        self._out = gr.State([])
        self._heads = gr.State("")
        self._clicked = gr.State(0.0)
        """The number of the newest click that was heeded."""
        self._wire_board()
        self._wire_picture()
        self._wire_measuring()

    # --- what the tab asks for

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` and `live` may change."""
        return [self._mark, self._board.measure, self._board.told]

    def shown(self, model: str, fresh: str) -> Update:
        """The board follows when the model or its newest map is another one; what is switched off stays."""
        jobs, newest = self._jobs(model), self._newest(model)
        own = next((job for job in jobs if job.id == fresh), None)
        return {
            self._mark: f"{model} {'' if newest is None else newest.id}",
            self._board.told: "" if own is None else self._ended(own),
            **self._measuring(on=any(not job.finished for job in jobs)),
        }

    def live(self, job: JobRecord) -> Update:
        """How far it is stands above the steps; here it cannot be begun twice."""
        return self._measuring(on=True)

    # --- the board

    def _wire_board(self) -> None:
        board, picture = self._board, self._picture
        switched = [self._out, self._heads, board.html, board.about, picture.chips, picture.all_on]
        now = [self._frame.model, board.view, self._out, self._heads]

        def on_mark(mark: str, view: object, out: object, heads: str, seen: str) -> Update:
            model = mark.rpartition(" ")[0]
            known = self._read(model)
            if known.shape is None:
                return {**self._cannot(known.why), self._seen: model}
            fresh = model != seen
            views = self._views(known.heat)
            chosen = view if view in views.values() and not fresh else PARTS
            kept = [] if fresh else self._there(_knocks(out), known.shape)
            update: Update = {
                **self._switched(known, kept, str(chosen), "" if fresh else heads),
                board.view: gr.update(choices=list(views.items()), value=chosen, visible=len(views) > 1),
                self._sorry: gr.update(visible=False), self._room: gr.update(visible=True), self._seen: model,
            }  # fmt: skip
            if fresh:
                update |= {**picture.cleared(self._t), **self._form.show(self._studio.models.get(model).defaults)}
            return update

        def on_pick(event: gr.EventData, model: object, view: object, newest: float) -> Update:
            with errors_as_toasts(self._t):
                click = _click(event)
                if click.number <= newest:  # overtaken on its way: a newer one held all of it
                    return {self._clicked: newest}
                switched = self._switched(self._require(model), click.out, str(view), click.heads, click.revision)
                return {**switched, self._clicked: click.number}

        def on_view(model: object, view: object, out: object, heads: str) -> Update:
            with errors_as_toasts(self._t):
                return self._switched(self._require(model), _knocks(out), str(view), heads)

        def on_all(model: object, view: object, _out: object, heads: str) -> Update:
            with errors_as_toasts(self._t):
                return self._switched(self._require(model), [], str(view), heads)

        shown = [*switched, board.view, self._sorry, self._room, self._seen, *picture.outputs, *self._form.own]
        self._mark.change(on_mark, [self._mark, *now[1:], self._seen], shown, **PRIVATE)
        board.view.input(on_view, now, switched, **PRIVATE)
        picking = [self._frame.model, board.view, self._clicked]
        for event in (
            board.html.click(on_pick, picking, [*switched, self._clicked], trigger_mode="multiple", **IN_TURN),
            picture.all_on.click(on_all, now, switched, **PRIVATE),
        ):
            self._draw_after(event)

    def _switched(
        self, known: Known, out: Sequence[Knock], view: str, heads: str, revision: str | None = None
    ) -> Update:
        """The board with `out` switched off. Without a `revision` it overrules what the browser holds."""
        t = self._t
        steps_of = view if view in WHOLE else ""
        look = View(steps_of, heads, revision or secrets.token_hex(4))
        blocks = () if known.shape is None else known.shape.blocks
        about = t("heat_none") if known.heat is None else compress_heat.about(known.heat, steps_of, t)
        return {
            self._out: [str(knock) for knock in out],
            self._heads: heads,
            self._board.html: compress_heat.board(blocks, frozenset(out), known.heat, look, t),
            self._board.about: present.note(about),
            self._picture.chips: compress_heat.chips(out, t),
            self._picture.all_on: gr.update(visible=bool(out)),
        }

    def _cannot(self, why: str) -> Update:
        words = self._t("lab_no_board_hint", why=why)
        html = compress_lab.problem(self._t("lab_no_board"), words)
        return {self._sorry: gr.update(value=html, visible=True), self._room: gr.update(visible=False)}

    def _read(self, model: str) -> Known:
        """From the headers and the newest map; a map that cannot be read is none."""
        compression = self._studio.compression
        try:
            shape = compression.shape(model)
        except UserError as error:
            return Known(None, error.text(self._t.lang))
        job = self._newest(model)
        if job is None:
            return Known(shape)
        try:
            return Known(shape, heat=compression.sensitivity_map(job))
        except UserError as error:
            return Known(shape, error.text(self._t.lang))

    def _jobs(self, model: str) -> list[JobRecord]:
        """The measurings of this model, newest first."""
        return [job for job in self._studio.jobs.list() if job.kind == "sensitivity" and job.model == model]

    def _newest(self, model: str) -> JobRecord | None:
        return next((job for job in self._jobs(model) if job.state == "done"), None)

    def _require(self, model: object) -> Known:
        """Raises UserError where the model has no board."""
        shape = self._studio.compression.shape(str(model or ""))
        return Known(shape, heat=self._read(str(model)).heat)

    def _views(self, heat: SensitivityMap | None) -> dict[str, str]:
        """The ways to look at the map, by their words."""
        parts = () if heat is None else {cell.knock.part for cell in heat.cells if cell.by_step}
        steps = {self._t("heat_view_step", part=self._t(f"part_{part}")): part for part in WHOLE if part in parts}
        return {self._t("heat_view_parts"): PARTS, **steps}

    def _there(self, knocks: Sequence[Knock], shape: TransformerShape) -> list[Knock]:
        """Those that a model of this shape has."""
        heads = {(block.stack, block.index): block.heads for block in shape.blocks}
        return [knock for knock in knocks if (knock.head or 0) < heads.get((knock.stack, knock.index), 0)]

    # --- the picture

    def _draw_after(self, event: Any) -> None:
        """Draw when `event` has succeeded, where that is wanted; with nothing switched off there is nothing to draw."""
        picture = self._picture

        def on_switched(
            request: gr.Request, live: object, model: object, out: object, number: float, *fields: object
        ) -> Any:
            if live or not out:
                yield from self._drawn(request, model, out, number, fields)
            else:
                yield {picture.stage: gr.skip()}

        inputs = [picture.live, self._frame.model, self._out, self._clicked, *self._form.fields]
        event.success(on_switched, inputs, picture.outputs, trigger_mode="multiple", **PRIVATE)
        event.success(None, None, None, js=SCROLL, **LOCAL)

    def _wire_picture(self) -> None:
        picture = self._picture

        def on_draw(
            request: gr.Request, model: object, out: object, number: float, *fields: object
        ) -> Iterator[Update]:
            with errors_as_toasts(self._t):
                if not out:
                    raise UserError("no_knocks")
            yield from self._drawn(request, model, out, number, fields)

        def on_stop(request: gr.Request) -> None:
            self._lab.stop(session_of(request))

        inputs = [self._frame.model, self._out, self._clicked, *self._form.fields]
        picture.draw.click(on_draw, inputs, picture.outputs, trigger_mode="multiple", **PRIVATE)
        picture.stop.click(on_stop, None, None, **PRIVATE)
        fresh = self._form.new_seed.click(lambda: str(secrets.randbelow(MAX_SEED)), None, self._form.seed, **PRIVATE)
        self._draw_after(fresh)

    def _drawn(
        self, request: gr.Request, model: object, out: object, number: float, fields: Sequence[object]
    ) -> Iterator[Update]:
        """The picture with and without, moment by moment; a newer wish of the same page ends this one."""
        picture, session = self._picture, session_of(request)
        if not out:
            if self._lab.clear(session, number):
                yield picture.cleared(self._t)
            return
        with errors_as_toasts(self._t):
            for moment in self._lab.draw(session, str(model or ""), _knocks(out), self._form.values(fields), number):
                yield picture.moment(moment)

    # --- measuring

    def _wire_measuring(self) -> None:
        board = self._board

        def on_measure(model: object, prompts: object) -> Update:
            with errors_as_toasts(self._t):
                values = {"count": prompts, "by_timestep": True}
                job = self._studio.compression.sensitivity(str(model or ""), values)
            return {self._frame.fresh: job.id, board.told: "", **self._measuring(on=True)}

        outputs = [self._frame.fresh, board.told, board.measure]
        board.measure.click(on_measure, [self._frame.model, board.prompts], outputs, trigger_mode="once", **PRIVATE)

    def _measuring(self, *, on: bool) -> Update:
        words = self._t("heat_measuring" if on else "heat_measure")
        return {self._board.measure: gr.update(interactive=not on, value=words)}

    def _ended(self, job: JobRecord) -> str:
        """How the measuring that this page began has ended, where a word is needed."""
        if job.state == "stopped":
            return present.note(self._t("heat_stopped"))
        if job.finished and job.problem is not None:
            return compress_lab.problem(self._t("heat_failed"), job.problem.text(self._t.lang))
        return ""


@dataclass(frozen=True, slots=True)
class Click:
    """What the browser held after a click: what is switched off, the block whose heads are shown, the board it saw."""

    out: list[Knock]
    heads: str
    revision: str
    number: float


def _click(event: gr.EventData) -> Click:
    """Raises InvalidInputError for what no board of ours sends."""
    data: Any = event._data
    out, heads, revision, told = (
        data.get(key) if isinstance(data, dict) else None for key in ("out", "heads", "revision", "number")
    )
    number = _number(told)
    if number is None or not (isinstance(out, list) and isinstance(heads, str) and isinstance(revision, str)):
        shown = json.dumps(data, default=str)[:80]
        raise InvalidInputError("bad_choice", field="part", value=shown, known=str(Knock("layers", 0)))
    return Click(_knocks(out), heads[:MAX_PLACE_CHARS], revision[:16], number)


def _number(told: object) -> float | None:
    if isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told < MAX_NUMBER:
        return float(told)
    return None


def _knocks(refs: object) -> list[Knock]:
    """Raises InvalidInputError for what names no part."""
    return [knock_named(str(ref)) for ref in refs[:MAX_KNOCKS]] if isinstance(refs, list) else []
