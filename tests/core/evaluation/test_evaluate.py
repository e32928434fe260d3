"""The card of a real evaluation says what is true of the models."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.core.evaluation.evaluated import COUNT, STOP_AFTER, Evaluated, blank_model, run
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.records.report import ReportCard

SAMPLED = ("judge_accuracy", "judge_all_right", "clip_score")
DISTANCES = ("psnr_db", "ssim", "judge_distance")


def test_a_model_against_itself_is_identical_and_nothing_is_claimed(itself: ReportCard) -> None:
    for name in DISTANCES:
        line = itself.metric(name)
        assert line is not None and line.identical and line.finding == "same"
    assert itself.metric("psnr_db").value is None
    assert itself.metric("ssim").value == pytest.approx(1)
    for name in SAMPLED:
        line = itself.metric(name)
        assert line.interval[0] <= 0 <= line.interval[1]
        assert line.finding == "unclear"
    for name in ("bytes", "parameters", "flops"):
        assert itself.metric(name).finding == "same"
    assert [target.met for target in itself.targets] == [False, False, True]
    assert itself.quantised is None
    assert ("quantised", "report.why.not_smaller") in {(item.name, item.reason) for item in itself.not_measured}


def test_a_damaged_model_is_shown_to_be_worse(damaged: Evaluated) -> None:
    for name in SAMPLED:
        line = damaged.card.metric(name)
        assert line.finding == "worse", line
        assert line.interval[1] < 0
        assert line.against_quantised == "worse"
    psnr = damaged.card.metric("psnr_db")
    assert psnr.interval[0] <= psnr.value <= psnr.interval[1] < psnr.quantised
    assert damaged.card.metric("ssim").against_quantised == "worse"


def test_the_quantised_parent_is_as_large_as_the_model(damaged: Evaluated) -> None:
    rival, model, parent = damaged.card.quantised, damaged.card.model, damaged.card.parent
    layer = 192 * 512 * 2
    assert rival.reachable and rival.int8 + rival.int4 > 0
    assert abs(rival.bytes - model.bytes) < layer
    assert rival.bytes == damaged.card.metric("bytes").quantised < parent.bytes
    assert rival.bytes - rival.transformer_bytes == parent.bytes - parent.transformer_bytes


def test_sizes_are_those_that_the_list_of_models_shows(damaged: Evaluated) -> None:
    facts = inspect_folder(damaged.out.parent)
    assert (damaged.card.model.bytes, damaged.card.model.parameters) == (facts.bytes, facts.parameters)
    assert damaged.card.metric("flops").value < damaged.card.metric("flops").parent
    assert damaged.card.metric("peak_bytes").value > 0
    assert damaged.card.metric("failed_pictures").value == 0
    assert damaged.card.metric("seconds_per_image").source == "report.source.interleaved"


def test_what_was_not_measured_is_named_with_its_reason(damaged: Evaluated) -> None:
    assert {item.name for item in damaged.card.not_measured} == {"lpips", "hps_v2", "image_reward"}


def test_a_stop_loses_at_most_the_picture_that_was_being_drawn(damaged: Evaluated) -> None:
    assert len(damaged.kept) >= STOP_AFTER - 1
    assert {path: path.stat().st_mtime_ns for path in damaged.kept} == damaged.kept


def test_the_progress_is_one_and_never_goes_back(damaged: Evaluated) -> None:
    told = [(done, total) for done, total, note in damaged.seen if note != "note.hashing"]
    assert len({total for _, total in told}) == 1
    assert all(before <= after for (before, _), (after, _) in pairwise(told))
    assert told[-1][0] == told[-1][1]


def test_the_card_lies_beside_the_model_and_is_read_back(damaged: Evaluated) -> None:
    assert ReportCard.from_json((damaged.out / "card.json").read_text("utf-8")) == damaged.card
    names = {path.name for path in damaged.out.iterdir()}
    assert names == {
        "card.json", "card.html", "card.zh.html", "card.md", "card.zh.md", "sheet.png", "pictures"
    }  # fmt: skip
    pairs = damaged.card.pairs
    assert len(pairs) == COUNT == len(set(damaged.card.prompts))
    assert all((damaged.out / file).is_file() for pair in pairs for file in pair.files.values())
    assert {len(pair.files) for pair in pairs} == {3}


def test_a_model_that_draws_nothing_gets_a_card_that_says_so(tmp_path: Path) -> None:
    child = blank_model(tmp_path / "blank")
    card = run(child, child / "report", lambda *_: None, count=2, steps=2)
    assert card.metric("failed_pictures").value == 2
    assert card.metric("failed_pictures").finding == card.metric("judge_accuracy").finding == "worse"
    assert {"seconds_per_image", "peak_bytes"} <= {item.name for item in card.not_measured}
    assert {target.name: target.met for target in card.targets}["time"] is None
    assert not (tmp_path / "blank" / ".report.work").exists()
