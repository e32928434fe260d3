"""Understand and judge: the board, what a click means, the report card and the frontier as they are shown."""

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from tests.core.evaluation.test_card import HOSTILE, card
from zimage_studio.core.evaluation.frontier import groups
from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.messages import LANGS
from zimage_studio.records.plan import BlockShape
from zimage_studio.records.report import Metric
from zimage_studio.records.sensitivity import Cell, Knock, SensitivityMap, knock_named
from zimage_studio.services.studio import Studio
from zimage_studio.ui.compress import card_view as compress_card_view
from zimage_studio.ui.compress import frontier as compress_frontier
from zimage_studio.ui.compress import heat as compress_heat
from zimage_studio.ui.compress import judge as compress_judge
from zimage_studio.ui.compress import understand as compress_understand
from zimage_studio.ui.compress.heat import HEADS, WHOLE, View, board
from zimage_studio.ui.compress.judge_widgets import add_judge_form
from zimage_studio.ui.compress.lab import Lab, LabMoment
from zimage_studio.ui.texts import Texts

EN, ZH = Texts("en"), Texts("zh")
BLOCKS = (BlockShape("noise_refiner", 0, 512, 6), BlockShape("layers", 0, 512, 6), BlockShape("layers", 1, 256, 4))
ATTENTION = Knock("layers", 1, "attention")
HEAD = Knock("layers", 0, "head", 5)


def heat() -> SensitivityMap:
    """Every part of BLOCKS at two steps; the attention of layer 1 matters most."""
    cells = tuple(
        Cell(knock=knock, change=0.8 if knock == ATTENTION else 0.2, by_step=(0.1, 0.9 if knock == ATTENTION else 0.3))
        for block in BLOCKS
        for part in WHOLE
        for knock in (Knock(block.stack, block.index, part),)
    )
    return SensitivityMap(prompts=("a",), seeds=(1,), width=128, height=128, times=(0.0, 0.5), cells=cells)


class Reader(HTMLParser):
    """Checks that every element is closed, that nothing could run, and collects buttons and what is read aloud."""

    VOID = frozenset({"img", "line", "circle", "polyline", "input", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.buttons: list[Mapping[str, str | None]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        assert tag != "script" and not [name for name, _ in attrs if name.startswith("on")]
        if tag == "button":
            self.buttons.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def button(reader: Reader, pick: str) -> Mapping[str, str | None]:
    return next(found for found in reader.buttons if found["data-pick"] == pick)


def event(data: object) -> gr.EventData:
    return gr.EventData(None, data)


# --- the board


@pytest.mark.parametrize("lang", LANGS)
def test_every_part_is_a_button_with_a_name_of_its_own(lang: str):
    reader = Reader(board(BLOCKS, frozenset({ATTENTION}), heat(), View(heads_of="layers.0"), Texts(lang)))
    parts = len(BLOCKS) * (len(WHOLE) + 1) + 6
    assert len(reader.buttons) == parts
    assert len({found["aria-label"] for found in reader.buttons}) == parts
    assert button(reader, str(ATTENTION))["aria-pressed"] == "true"
    assert sum(found.get("aria-pressed") == "true" for found in reader.buttons) == 1
    assert button(reader, f"{HEADS}layers.0")["aria-expanded"] == "true"
    assert button(reader, str(HEAD))["aria-label"]


def test_colour_follows_what_was_measured_and_stays_under_readable_numbers():
    reader = Reader(board(BLOCKS, frozenset(), heat(), View(), EN))
    assert button(reader, str(ATTENTION))["style"] == "--heat:72%"
    assert button(reader, "layers.0.block")["style"] == "--heat:36%"  # a quarter: half the colour
    assert "0.80" in reader.text and "Lost without it" in reader.text
    bare = Reader(board(BLOCKS, frozenset(), None, View(), EN))
    assert all("style" not in found for found in bare.buttons)


def test_step_by_step_every_cell_still_switches_the_whole_part():
    reader = Reader(board(BLOCKS, frozenset(), heat(), View(steps_of="attention"), EN))
    assert len(reader.buttons) == len(BLOCKS) * 2
    assert {str(found["data-pick"]) for found in reader.buttons} == {
        f"{block.stack}.{block.index}.attention" for block in BLOCKS
    }
    assert "step 2 · lost without it: 0.90" in str(reader.buttons[-1]["aria-label"])


@pytest.mark.parametrize("knock", [ATTENTION, HEAD, Knock("context_refiner", 0), Knock("layers", 9, "feed_forward")])
def test_a_button_says_what_it_switches(knock: Knock):
    assert knock_named(str(knock)) == knock


@pytest.mark.parametrize(
    "ref",
    ["", "layers", "layers.-1.block", "layers.1.nose", "roof.1.block", "layers.1.head", "layers.1.block.2", HOSTILE],
)
def test_anything_else_is_refused(ref: str):
    with pytest.raises(InvalidInputError):
        knock_named(ref)


CLICK = {"out": [str(HEAD), str(ATTENTION)], "heads": "layers.1", "revision": "ab12", "number": 7.5}


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        *({name: value for name, value in CLICK.items() if name != left} for left in CLICK),
        *({**CLICK, "number": number} for number in (True, "7", -1, float("nan"), float("inf"), 10**400)),
    ],
)
def test_a_click_that_says_too_little_is_refused(data: object):
    with pytest.raises(InvalidInputError):
        compress_understand._click(event(data))


def test_a_click_brings_all_that_is_switched_off():
    click = compress_understand._click(event(CLICK))
    assert (click.out, click.heads, click.revision, click.number) == ([HEAD, ATTENTION], "layers.1", "ab12", 7.5)


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (0.0001, "<.01"), (0.114, "0.11"), (0.999, "1.0"), (7.77, "7.8"), (123.4, "123")]
)
def test_a_number_fits_its_cell(value: float, words: str):
    assert compress_heat.amount(value) == words


# --- with and without, on the live model


def test_the_picture_without_is_marked_and_the_model_is_whole_afterwards(studio: Studio):
    lab, model = Lab(studio, EN), studio.settings.model
    values = {"prompt": "a big red heart on a white background", "seed": "7", "steps": 4}

    def drawn(*knocks: Knock) -> LabMoment:
        moments = list(lab.draw("page", model, knocks, values))
        assert all(moment.pictures is None for moment in moments[:-1])
        return moments[-1]

    first, second = drawn(ATTENTION), drawn(HEAD)
    assert first.pictures is not None and second.pictures is not None
    (whole, without), (again, _) = first.pictures, second.pictures
    assert Path(without).name == "without_layers.1.attention.png"
    with Image.open(without) as image:
        assert "without layers.1.attention; seed 7" in image.text["Comment"]
        assert not np.array_equal(np.asarray(image), np.asarray(Image.open(whole)))
    assert np.array_equal(np.asarray(Image.open(whole)), np.asarray(Image.open(again)))
    assert "Without Block 1 · Attention" in first.html and "PSNR" in first.html
    made = studio.generation.submit({**values, "count": 1}, model=model).result(60)
    assert np.array_equal(np.asarray(Image.open(made[0].path)), np.asarray(Image.open(whole)))
    assert studio.images.page()[1] == 1  # History has that one, and none of the knock-outs


def test_an_older_wish_that_comes_late_neither_draws_nor_stops_the_newer_one(studio: Studio):
    lab, model = Lab(studio, EN), studio.settings.model
    values = {"prompt": "a big red heart on a white background", "seed": "7", "steps": 20}
    newer = lab.draw("page", model, [ATTENTION], values, 5.0)
    next(newer)
    assert list(lab.draw("page", model, [HEAD], values, 4.5)) == []
    assert not lab.clear("page", 4.5)
    other = next(lab.draw("another page", model, [HEAD], values, 1.0))
    assert other.running
    *_, last = newer
    assert last.pictures is not None and "Block 1 · Attention" in last.html
    *_, again = lab.draw("page", model, [HEAD], values, 5.0)
    assert again.pictures is not None and "Head" in again.html
    assert lab.clear("page", 5.0)


def test_a_part_that_is_not_there_is_refused_in_a_sentence(studio: Studio):
    lab = Lab(studio, EN)
    with pytest.raises(gr.Error, match="no block"):
        list(lab.draw("page", studio.settings.model, [Knock("layers", 99)], {"prompt": "a", "seed": "1", "steps": 1}))
    with pytest.raises(UserError):
        list(lab.draw("page", "no such model", [ATTENTION], {"prompt": "a", "seed": "1"}))


# --- the report card


@pytest.mark.parametrize("lang", LANGS)
def test_a_card_shows_everything_and_a_prompt_in_it_is_only_text(lang: str):
    t = Texts(lang)
    html = compress_card_view.card(card(), t)
    reader = Reader(html)
    assert "alert(" in reader.text and "<script>" not in html and "\u202e" not in html
    assert re.findall(r'data-state="(\w+)"', html) == ["missed", "unknown"]
    assert set(re.findall(r'data-metric="(\w+)"', html)) == {metric.name for metric in card().metrics}
    assert html.count("zs-whisker") == 2  # time and accuracy; bytes are counted, PSNR is a distance
    assert compress_card_view.column("quantised", t) in reader.text


def test_a_card_without_a_quantised_parent_has_no_column_for_it():
    html = compress_card_view.card(replace(card(), quantised=None), EN)
    assert "Parent, quantised" not in re.findall(r'<th scope="col">([^<]*)</th>', html)


def test_what_was_found_has_a_mark_and_words():
    def shown(low: float, high: float) -> str:
        line = Metric(
            name="clip_score", value=0.3, parent=0.3 - (low + high) / 2, unit="", better="higher", interval=(low, high)
        )
        return compress_card_view.card(replace(card(), metrics=(line,)), EN)

    for bounds, mark, words in (
        ((0.1, 0.2), "▲", "better"),
        ((-0.2, -0.1), "▼", "worse"),
        ((-0.1, 0.2), "≈", "no difference"),
    ):
        assert f">{mark}</i>" in shown(*bounds) and words in Reader(shown(*bounds)).text


def test_pairs_are_buttons_and_their_numbers_are_said():
    sheet = Reader(compress_card_view.pairs(card(), {"pictures/model/0000.png": "data:,"}, 1, EN))
    assert [found["data-pick"] for found in sheet.buttons] == ["pair:0", "pair:1"]
    assert sheet.buttons[1].get("aria-current") == "true"
    words = Reader(compress_card_view.pair_words(card(), card().pairs[0], "parent", EN)).text
    assert "Left: Parent. Right: This model. Seed 0." in words and "Judge: right answers" in words


@pytest.mark.parametrize("picked", ["", "pair:", "pair:-1", "pair:x", "pair:²", "0", "pair:9999999"])
def test_a_click_on_no_pair_is_refused(picked: str):
    with pytest.raises(InvalidInputError):
        compress_judge._index(picked)


def test_the_form_asks_what_an_evaluation_knows():
    from zimage_studio.records.report import EvaluationRequest

    with gr.Blocks():
        form = add_judge_form(EN)
    held = [widget.value for widget in form.fields]
    assert EvaluationRequest.from_dict(form.values(held)) == EvaluationRequest()
    held[list(form.asked).index("prompts")] = " a fish \n\n a bird"
    assert EvaluationRequest.from_dict(form.values(held)).prompts == ("a fish", "a bird")


@pytest.mark.parametrize("lang", LANGS)
def test_the_frontier_names_every_model_and_says_its_numbers_in_a_table(lang: str):
    t = Texts(lang)
    found = groups([card("small", 6_000_000, 0.7), card("middle", 8_000_000, 0.8)])
    choices = compress_frontier.choices(found, t)
    assert len({key for _, key in choices}) == len(choices)
    group = compress_frontier.chosen(found, choices[-1][1])
    assert group is not None and compress_frontier.key_of(group) == choices[-1][1]
    assert compress_frontier.chosen(found, "gone") == found[0]
    assert compress_frontier.chosen([], None) is None
    html = compress_frontier.shown(found[0], t)
    assert html.count("<svg") == 2 and "small" in html and "middle" in html
    assert html.count("<tr data-role=") == len(found[0].points)


def test_before_the_first_card_stands_what_can_be_done_now():
    press, uncut, working = (
        compress_card_view.idle(EN),
        compress_card_view.idle(EN, uncut=True),
        compress_card_view.idle(EN, uncut=True, working=True),
    )
    assert "Press Judge" in press
    assert "has no parent" in uncut and "Press Judge" not in uncut
    assert "being judged" in working and "has no parent" not in working
