"""The widgets of the step "judge"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.report import DEFAULT_PROMPTS
from zimage_studio.ui import present
from zimage_studio.ui.compare import Compare, add_compare
from zimage_studio.ui.compress.widgets import heading
from zimage_studio.ui.doors import Update
from zimage_studio.ui.family import PICK
from zimage_studio.ui.texts import Texts

SCORERS = {
    "clip": ("judge_clip", "judge_clip_info"),
    "lpips": ("judge_lpips", "judge_lpips_info"),
    "image_reward": ("judge_image_reward", "judge_image_reward_info"),
    "hps": ("judge_hps", "judge_hps_info"),
}
"""Models that measure, each with its words."""
FILES = {"json": "card_json", "html": "card_html", "md": "card_md"}


@dataclass(frozen=True, slots=True)
class JudgeForm:
    """What is compared, on what, and by whom."""

    against: gr.Dropdown
    asked: Mapping[str, Any]
    """The fields of an evaluation by name."""
    start: gr.Button
    told: gr.HTML

    @property
    def fields(self) -> list[Any]:
        """The widgets of `asked`."""
        return list(self.asked.values())

    def values(self, held: Sequence[object]) -> dict[str, object]:
        """What the widgets hold as the fields of an evaluation; prompts are one a line."""
        values = dict(zip(self.asked, held, strict=True))
        lines = str(values.get("prompts") or "").splitlines()
        return {**values, "prompts": [line.strip() for line in lines if line.strip()]}


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """The card, its files, the pairs, the frontier."""

    card: gr.HTML
    files: gr.Row
    buttons: tuple[gr.DownloadButton, ...]
    pairs_room: gr.Column
    pairs: gr.HTML
    beside: gr.Radio
    compare: Compare
    words: gr.HTML
    frontier_room: gr.Column
    quality: gr.Dropdown
    frontier: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """Everything that shows a card."""
        shown = [self.card, self.files, *self.buttons, self.pairs_room, self.pairs, self.beside]
        return [*shown, *self.compare.outputs, self.words, *self.frontier_outputs]

    @property
    def frontier_outputs(self) -> list[Any]:
        """What shows the frontier."""
        return [self.frontier_room, self.quality, self.frontier]

    def empty(self, html: str) -> Update:
        """No card; `html` says so."""
        hidden = gr.update(visible=False)
        return {self.card: gr.update(value=html, visible=True), self.files: hidden, self.pairs_room: hidden}


def add_judge_form(t: Texts) -> JudgeForm:
    """Add the form; its choices come when the tab is opened."""
    gr.HTML(present.note(t("judge_note")))
    asked: dict[str, Any] = {}
    with gr.Row(elem_classes="zs-judge-row"):
        against = gr.Dropdown(
            [(t("judge_against_parent"), "")], value="", label=t("judge_against"), filterable=False, min_width=200,
            elem_id="zs-judge-against",
        )  # fmt: skip
        asked["count"] = gr.Number(
            DEFAULT_PROMPTS, label=t("judge_count"), step=1, min_width=90, elem_id="zs-judge-count"
        )
        asked["seed"] = gr.Number(0, label=t("judge_seed"), step=1, min_width=90, elem_id="zs-judge-seed")
    asked["quantised"] = gr.Checkbox(True, label=t("judge_quantised"), elem_id="zs-judge-quantised")
    with gr.Accordion(t("judge_more"), open=False, elem_classes="zs-fields"):
        asked["prompts"] = gr.Textbox(
            "", label=t("judge_own_prompts"), placeholder=t("judge_own_placeholder"), lines=2, max_lines=8,
            elem_id="zs-judge-prompts",
        )  # fmt: skip
        for name, (label, info) in SCORERS.items():
            asked[name] = gr.Textbox("", label=t(label), info=t(info), max_lines=1, elem_id=f"zs-judge-{name}")
    start = gr.Button(t("judge_start"), variant="primary", elem_id="zs-judge-start")
    return JudgeForm(against, asked, start, gr.HTML("", elem_id="zs-judge-told"))


def add_judge_report(t: Texts) -> JudgeReport:
    """Add the place of the card, empty."""
    made: dict[str, Any] = {"card": gr.HTML("", elem_id="zs-report")}
    with gr.Row(visible=False, elem_classes="zs-actions") as made["files"]:
        made["buttons"] = tuple(
            gr.DownloadButton(t(words), size="md", min_width=110, elem_id=f"zs-card-{kind}")
            for kind, words in FILES.items()
        )
    with gr.Column(visible=False, elem_classes="zs-part") as made["pairs_room"]:
        heading(t("pairs_title"))
        made["pairs"] = gr.HTML("", js_on_load=PICK, elem_id="zs-pairs")
        made["beside"] = gr.Radio(
            [], label=t("pairs_side"), visible=False, elem_classes="zs-sizes", elem_id="zs-beside"
        )
        sides = (t("pair_left"), t("lab_show_both"), t("pair_right"))
        made["compare"] = add_compare("zs-pair-slider", sides, t("pair_slider"))
        made["words"] = gr.HTML("", elem_id="zs-pair-words")
    with gr.Column(visible=False, elem_classes="zs-part") as made["frontier_room"]:
        heading(t("frontier_heading"))
        made["quality"] = gr.Dropdown([], label=t("frontier_quality"), filterable=False, elem_id="zs-frontier-quality")
        made["frontier"] = gr.HTML("", elem_id="zs-frontier")
    return JudgeReport(**made)
