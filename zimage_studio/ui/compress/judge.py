"""Step six, judge: a model against its parent, the report card, the pairs, the frontier."""

import base64
import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, UnidentifiedImageError

from zimage_studio.core.evaluation.frontier import groups
from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.job import JobKind, JobRecord
from zimage_studio.records.report import Column, ReportCard
from zimage_studio.ui import present
from zimage_studio.ui.compress import card_view as compress_card_view
from zimage_studio.ui.compress import frontier as compress_frontier
from zimage_studio.ui.compress import lab as compress_lab
from zimage_studio.ui.compress.card_view import PAIR
from zimage_studio.ui.compress.frame import Frame, pick_of
from zimage_studio.ui.compress.judge_widgets import FILES, JudgeForm, JudgeReport, add_judge_form, add_judge_report
from zimage_studio.ui.doors import PRIVATE, Update, errors_as_toasts, shown

THUMB_PX = 128
KEPT_SHEETS = 4
NO_PAIR = -1
BESIDE: tuple[Column, ...] = ("parent", "quantised")


class JudgeCard:
    """The form above, what came out below."""

    kinds: frozenset[JobKind] = frozenset({"evaluate"})

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._studio = frame.studio
        self._t = frame.t
        self._sheets: OrderedDict[tuple[str, str], Mapping[str, str]] = OrderedDict()
        self._form: JudgeForm = add_judge_form(frame.t)
        self._report: JudgeReport = add_judge_report(frame.t)
        self._chosen = gr.State(NO_PAIR)
        self._wire_form()
        self._wire_report()

    # --- what the tab asks for

    @property
    def outputs(self) -> list[Any]:
        """All that `shown` and `live` may change."""
        return [self._form.against, self._form.start, self._form.told, *self._report.outputs, self._chosen]

    def shown(self, model: str, fresh: str) -> Update:
        """The card of `model`, its pairs, and the frontier of all models."""
        jobs = [job for job in self._studio.jobs.list() if job.kind == "evaluate" and job.model == model]
        own = next((job for job in jobs if job.id == fresh), None)
        card = self._card(model)
        report = self._report
        working = any(not job.finished for job in jobs)
        update: Update = {
            self._form.against: gr.update(choices=self._rivals(model)),
            self._form.told: "" if own is None else self._ended(own),
            **self._working(on=working),
            **self._frontier(None),
            self._chosen: NO_PAIR,
        }
        if card is None:
            uncut = any(found.key == model and found.parent is None for found in self._studio.models.list())
            return {**update, **report.empty(compress_card_view.idle(self._t, uncut=uncut, working=working))}
        sides = [(compress_card_view.column(side, self._t), side) for side in BESIDE if _has(card, side)]
        return {
            **update,
            report.card: gr.update(value=compress_card_view.card(card, self._t), visible=True),
            report.files: gr.update(visible=True),
            **{button: self._file(model, kind) for button, kind in zip(report.buttons, FILES, strict=True)},
            report.pairs_room: gr.update(visible=bool(card.pairs)),
            report.beside: gr.update(choices=sides, value="parent", visible=len(sides) > 1),
            **self._none_opened(model, card),
        }

    def live(self, job: JobRecord) -> Update:
        """How far it is stands above the steps; here it cannot be begun twice."""
        return {}

    # --- beginning

    def _wire_form(self) -> None:
        form = self._form

        def on_start(model: object, against: object, *fields: object) -> Update:
            with errors_as_toasts(self._t):
                job = self._studio.compression.evaluate(str(model or ""), form.values(fields), str(against or ""))
            return {self._frame.fresh: job.id, form.told: "", **self._working(on=True)}

        inputs = [self._frame.model, form.against, *form.fields]
        form.start.click(on_start, inputs, [self._frame.fresh, form.told, form.start], trigger_mode="once", **PRIVATE)

    def _working(self, *, on: bool) -> Update:
        words = self._t("judge_working" if on else "judge_start")
        return {self._form.start: gr.update(interactive=not on, value=words)}

    def _rivals(self, model: str) -> list[tuple[str, str]]:
        """What a model can be compared with: its own uncut parent, or any other whole model."""
        whole = [found for found in self._studio.models.list() if found.kind in ("folder", "hub")]
        others = [(found.name, found.key) for found in whole if found.key != model]
        return [(self._t("judge_against_parent"), ""), *others]

    def _ended(self, job: JobRecord) -> str:
        """How the judging that this page began has ended, where a word is needed."""
        if job.state == "stopped":
            return present.note(self._t("judge_stopped"))
        if job.finished and job.problem is not None:
            return compress_lab.problem(self._t("judge_failed"), job.problem.text(self._t.lang))
        return ""

    # --- the card

    def _wire_report(self) -> None:
        report = self._report
        pair = [report.pairs, *report.compare.outputs, report.words]

        def on_pick(event: gr.EventData, model: object, beside: object) -> Update:
            with errors_as_toasts(self._t):
                index = _index(pick_of(event))
                return {**self._pair_of(model, index, beside), self._chosen: index}

        def on_beside(model: object, beside: object, index: object) -> Update:
            with errors_as_toasts(self._t):
                if not isinstance(index, int) or index == NO_PAIR:
                    return {report.words: gr.skip()}
                return self._pair_of(model, index, beside)

        def on_quality(quality: object) -> Update:
            return self._frontier(str(quality))

        report.pairs.click(on_pick, [self._frame.model, report.beside], [*pair, self._chosen], **PRIVATE)
        report.beside.input(on_beside, [self._frame.model, report.beside, self._chosen], pair, **PRIVATE)
        report.quality.input(on_quality, report.quality, report.frontier_outputs, **PRIVATE)

    def _card(self, model: str) -> ReportCard | None:
        try:
            return self._studio.compression.card(model)
        except UserError:
            return None  # none yet, or a model that is not here: the tab says which model is chosen

    def _file(self, model: str, kind: str) -> Any:
        folder = self._studio.compression.report_folder(model)
        own = folder / (f"card.{kind}" if self._t.lang == "en" or kind == "json" else f"card.{self._t.lang}.{kind}")
        path = own if own.is_file() else folder / f"card.{kind}"
        return gr.update(value=shown(path) if path.is_file() else None, interactive=path.is_file())

    def _pair_of(self, model: object, index: int, beside: object) -> Update:
        """Raises UserError when there is no such pair, or its pictures are gone."""
        card = self._studio.compression.card(str(model or ""))
        side: Column = "quantised" if beside == "quantised" and _has(card, "quantised") else "parent"
        if not 0 <= index < len(card.pairs):
            raise InvalidInputError("out_of_range", field="index", value=index, low=0, high=len(card.pairs) - 1)
        return self._pair(str(model), card, index, side)

    def _none_opened(self, model: str, card: ReportCard) -> Update:
        """The contact sheet alone: a slider that appears in a tab nobody looks at has no size, and keeps none."""
        report = self._report
        sheet = compress_card_view.pairs(card, self._thumbs(model, card), NO_PAIR, self._t)
        note = present.note(self._t("pairs_hint"))
        return {report.pairs: sheet, report.compare.column: gr.update(visible=False), report.words: note}

    def _pair(self, model: str, card: ReportCard, index: int, beside: Column) -> Update:
        """The contact sheet with one pair chosen, and that pair in the slider."""
        report, t = self._report, self._t
        sheet = compress_card_view.pairs(card, self._thumbs(model, card), index, t)
        pair, folder = card.pairs[index], self._studio.compression.report_folder(model)
        paths = [folder / pair.files.get(side, "") for side in (beside, "model")]
        if not all(path.is_file() for path in paths):
            gone = present.note(t("pairs_gone"))
            return {report.pairs: sheet, report.compare.column: gr.update(visible=False), report.words: gone}
        return {
            report.pairs: sheet,
            **report.compare.show(*(shown(path) for path in paths)),
            report.words: compress_card_view.pair_words(card, pair, beside, t),
        }

    def _thumbs(self, model: str, card: ReportCard) -> Mapping[str, str]:
        """Small pictures of parent and model, made once for a card."""
        key = (card.model.sha256, card.created)
        if key not in self._sheets:
            folder = self._studio.compression.report_folder(model)
            names = [pair.files[side] for pair in card.pairs for side in ("parent", "model") if side in pair.files]
            self._sheets[key] = {name: uri for name in names if (uri := _thumb(folder / name))}
            while len(self._sheets) > KEPT_SHEETS:
                self._sheets.popitem(last=False)
        return self._sheets[key]

    # --- the frontier

    def _frontier(self, key: str | None) -> Update:
        """Quality against size and against time, of the comparison `key` or the most telling one."""
        report, t = self._report, self._t
        cards = [member.card for member in self._studio.compression.family() if member.card is not None]
        found = groups(cards)
        group = compress_frontier.chosen(found, key)
        if group is None:
            return {report.frontier_room: gr.update(visible=False)}
        choices = compress_frontier.choices(found, t)
        return {
            report.frontier_room: gr.update(visible=True),
            report.quality: gr.update(choices=choices, value=compress_frontier.key_of(group)),
            report.frontier: compress_frontier.shown(group, t),
        }


def _has(card: ReportCard, side: str) -> bool:
    return any(side in pair.files for pair in card.pairs)


def _index(picked: str) -> int:
    """Raises InvalidInputError for what is no pair."""
    number = picked.removeprefix(PAIR)
    if not picked.startswith(PAIR) or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise InvalidInputError("bad_choice", field="index", value=picked[:40], known=f"{PAIR}0")
    return int(number)


def _thumb(path: Path) -> str:
    """A small picture as a data URI; empty where there is none."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=85)
    except (OSError, UnidentifiedImageError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
