"""The card as record, page and text: read back strictly, nothing in it runs or is fetched."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zimage_studio.core.evaluation import card_text
from zimage_studio.core.evaluation.card_html import html
from zimage_studio.core.evaluation.card_markdown import markdown
from zimage_studio.core.evaluation.frontier import cards_in, groups, svg, table
from zimage_studio.errors import InvalidInputError
from zimage_studio.messages import LANGS
from zimage_studio.records.report import (
    EvaluationRequest,
    Metric,
    NotMeasured,
    Pair,
    QuantisedParent,
    ReportCard,
    Subject,
    Target,
)

HOSTILE = '<script>alert("x")</script> | [a](http://evil.example) "\u202e'
VOID = {"meta", "img", "input", "line", "circle"}
NUMBERS = st.floats(-1e6, 1e6)


def subject(name: str, size: int) -> Subject:
    return Subject(
        name=name, sha256=f"{size:064x}", parameters=size // 2, bytes=size, transformer_parameters=size // 4,
        transformer_bytes=size // 2,
    )  # fmt: skip


def card(name: str = HOSTILE, size: int = 8_000_000, quality: float = 0.8) -> ReportCard:
    columns = ("model", "parent", "quantised")
    lines = (
        Metric(name="bytes", value=size, parent=1e7, quantised=8e6, unit="B", better="lower", counted=True),
        Metric(name="seconds_per_image", value=0.2, parent=0.4, quantised=0.5, unit="s", better="lower",
               interval=(-0.25, -0.15), samples=7, source="report.source.interleaved"),
        Metric(name="judge_accuracy", value=quality, parent=0.9, quantised=0.85, unit="", better="higher",
               interval=(quality - 0.95, quality - 0.85), quantised_interval=(-0.1, 0.0), rivals=(-0.1, 0.1), samples=2,
               source="embedded judge"),
        Metric(name="psnr_db", value=24.0, parent=None, quantised=30.0, unit="dB", better="higher",
               interval=(22.0, 25.0), to_parent=True, samples=2),
    )  # fmt: skip
    pairs = tuple(
        Pair(prompt=HOSTILE, seed=seed, files={c: f"pictures/{c}/{seed:04d}.png" for c in columns},
             values={"psnr_db": {"model": None, "parent": None}, "judge_accuracy": {"model": 0.8, "parent": 1.0}})
        for seed in (0, 1)
    )  # fmt: skip
    return ReportCard(
        created="2026-01-01T00:00:00+00:00", model=subject(name, size), parent=subject("Parent", 10_000_000),
        width=32, height=32, steps=8, guidance=2.0, prompts=(HOSTILE, HOSTILE), seeds=(0, 1), metrics=lines,
        not_measured=(NotMeasured(name="lpips", reason="report.why.lpips", values={"file": HOSTILE}),),
        targets=(Target(name="size", bound=0.7, reached=size / 1e7, met=size <= 7e6),
                 Target(name="clip_drop", bound=0.1, reached=None, met=None, sure=False)),
        pairs=pairs, machine={"device": "cpu"}, stack={"torch": "2"},
        quantised=QuantisedParent(int4=1, int8=2, plain=3, bytes=8_000_100, wanted_bytes=size, transformer_bytes=1,
                                  reachable=False),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for pair in card().pairs:
        for number, file in enumerate(pair.files.values()):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number * 80, 100, 200)).save(tmp_path / file)
    return tmp_path


class Reader(HTMLParser):
    """Keeps the open elements, and what could run or be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts, self.addresses, self.text = 0, [], ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID and tag != "i":
            self.open.append(tag)
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and tag != "i":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("lang", LANGS)
def test_the_page_is_whole_and_a_prompt_in_it_is_only_text(folder: Path, lang: str) -> None:
    page = html(card(), lang, folder)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.scripts == 1
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert len(reader.addresses) == 6
    assert 'alert("x")' in reader.text and "<script>alert" not in page
    assert "\u202e" not in page


@pytest.mark.parametrize("lang", LANGS)
def test_the_text_says_all_and_a_prompt_in_it_is_only_text(lang: str) -> None:
    text = markdown(card(), lang, "sheet.png")
    assert "<script>" not in text and "](http" not in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {8}
    assert "lpips" in text.lower() and "sheet.png" in text


@given(value=NUMBERS, parent=NUMBERS, low=NUMBERS, high=NUMBERS)
@settings(max_examples=50, deadline=None)
def test_a_card_is_read_back_as_it_was_written(value: float, parent: float, low: float, high: float) -> None:
    line = Metric(name="x", value=value, parent=parent, unit="", better="lower", interval=(low, high))
    made = replace(card(), metrics=(line,))
    assert ReportCard.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "report.schema"),
        (lambda text: text.replace('"schema": 1', '"schema": 1, "more": 3'), "report.unreadable"),
        (lambda text: text[: len(text) // 2], "report.unreadable"),
        (lambda text: text.replace('"value": 24.0', '"value": NaN'), "report.unreadable"),
        (lambda _text: "[]", "report.schema"),
    ],
)
def test_another_card_is_refused(change: object, key: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        ReportCard.from_json(change(card().to_json()))
    assert refused.value.key == key


def test_what_we_scored_with_is_said_in_the_language_of_the_reader() -> None:
    metric = card().metric("judge_accuracy")
    assert metric is not None
    assert card_text.source(metric, "en").startswith("the embedded judge")
    assert card_text.source(metric, "zh").startswith("内置评判网络")
    assert card_text.number(metric, -0.052, "en", signed=True) == "−5.2 points"
    assert card_text.number(metric, 0.052, "zh", signed=True) == "+5.2 个百分点"


def test_an_interval_that_holds_nothing_claims_nothing() -> None:
    line = Metric(name="x", value=0.4, parent=0.5, unit="", better="higher", interval=(-0.2, 0.01))
    assert line.finding == "unclear"
    assert replace(line, interval=(-0.2, -0.01)).finding == "worse"
    assert replace(line, interval=(-0.2, -0.01), better="lower").finding == "better"
    assert replace(line, interval=(0.0, 0.0)).finding == "unclear"
    assert replace(line, interval=None).finding == ""
    assert replace(line, interval=None, counted=True).finding == "worse"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"count": 1}, "count"), ({"resamples": 1999}, "resamples"), ({"repeats": 2}, "repeats"),
        ({"prompts": "a text"}, "prompts"), ({"prompts": ["only one"]}, "prompts"), ({"seed": -1}, "seed"),
        ({"size": 100}, "size"), ({"quantised": 1}, "quantised"), ({"what": 1}, "what"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_by_name(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        EvaluationRequest.from_dict(values)
    assert refused.value.field == field


def test_a_request_is_read_back_and_its_seeds_count_up() -> None:
    wanted = EvaluationRequest(prompts=("a", "b", "c"), seed=5)
    assert EvaluationRequest.from_dict(wanted.to_dict()) == wanted
    assert wanted.seeds == (5, 6, 7)


def test_the_frontier_keeps_what_nothing_beats(tmp_path: Path) -> None:
    made = {"small": (4_000_000, 0.6), "good": (6_000_000, 0.85), "bad": (7_000_000, 0.5)}
    for name, (size, quality) in made.items():
        (tmp_path / name / "report").mkdir(parents=True)
        (tmp_path / name / "report" / "card.json").write_text(card(name, size, quality).to_json(), "utf-8")
    (tmp_path / "damaged" / "report").mkdir(parents=True)
    (tmp_path / "damaged" / "report" / "card.json").write_text("{}")
    cards = cards_in(sorted(tmp_path.iterdir()))
    assert len(cards) == 3
    other = replace(card("other", 5_000_000), prompts=("x", "y"))
    first, *rest = groups([*cards, other])
    assert [point.name for point in first.frontier("bytes")] == ["small", "good", "Parent"]
    assert "other" not in {point.name for point in first.points}
    assert {point.name for group in rest for point in group.points if point.role == "model"} == {"other"}
    assert table([first])[0]["frontier_bytes"]


@pytest.mark.parametrize("lang", LANGS)
def test_the_plot_is_whole_and_names_in_it_are_only_text(lang: str) -> None:
    for axis in ("bytes", "time"):
        reader = Reader()
        reader.feed(svg(groups([card()])[0], axis, lang))
        assert reader.open == [] and reader.scripts == 0


def test_no_share_on_the_plot_is_more_than_all() -> None:
    drawn = svg(groups([card(quality=1.0)])[0], "bytes", "en")
    shares = [float(value) for value in re.findall(r">([\d.]+) %<", drawn)]
    assert shares and max(shares) <= 100
