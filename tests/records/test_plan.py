"""Plans and wishes for them: read back as written, and refused by name."""

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plans import plan
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.compress import PruneRequest, artifact_name, parse_prune
from zimage_studio.records.plan import BlockCut, Calibration, PrunePlan
from zimage_studio.records.ranges import ranges, units


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_kept_units_as_text_are_the_units(given_units):
    count, kept = given_units
    text = ranges(sorted(kept), count)
    assert units(text, count) == tuple(sorted(kept)) and (text == "") == (len(kept) == count)


@pytest.mark.parametrize("text", ["5-3", "3,3", "4,1", "0-10", "-1", "a", "1,,2", " 1", "1-2-3", "²"])
def test_other_spellings_of_kept_units_are_refused(text):
    with pytest.raises(InvalidInputError):
        units(text, 10)


def test_a_plan_is_read_back_as_it_was_written():
    made = plan()
    assert PrunePlan.from_json(made.to_json()) == made
    assert made.after.blocks[-1].index == 1 and [row["ffn_after"] for row in made.rows()] == [8, 8, 5, 0, 8]


def test_a_plan_that_says_in_words_how_it_was_measured_is_still_read():
    said = "8 prompts, 64 states, 128x96 px, guidance 2.5, seed 3"
    measured = Calibration(prompts=8, states=64, width=128, height=96, guidance=2.5, seed=3)
    assert Calibration.from_sentence(said) == measured
    for words, expected in ((said, measured), ("", None)):
        old = json.dumps({**json.loads(plan().to_json()), "calibration": words})
        assert PrunePlan.from_json(old).calibration == expected
    made = replace(plan(), calibration=measured)
    assert PrunePlan.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"calibration": "<img src=x>"}, "bad_plan"),
        ({"calibration": {"prompts": 1}}, "bad_plan"),
        ({"schema": 2}, "bad_plan"),
        ({"extra": 1}, "bad_plan"),
        ({"seed": "0"}, "bad_plan"),
        ({"predicted_speedup": math.nan}, "bad_plan"),
        ({"criterion": "magic"}, "bad_plan"),
        ({"cuts": []}, "plan_blocks"),
    ],
)
def test_a_strange_plan_is_refused(change, key):
    data = {**json.loads(plan().to_json()), **change}
    with pytest.raises(InvalidInputError) as refused:
        PrunePlan.from_json(json.dumps(data))
    assert refused.value.key in (key, "bad_plan")
    with pytest.raises(InvalidInputError):
        PrunePlan.from_json("[" * 100_000)


def test_a_plan_that_drops_all_layers_or_one_kind_of_refiner_is_refused():
    cuts = plan().cuts
    none = tuple(BlockCut(cut.stack, cut.index, cut.stack != "layers") for cut in cuts)
    with pytest.raises(InvalidInputError) as refused:
        plan(cuts=none)
    assert refused.value.key == "plan_no_layers"
    with pytest.raises(InvalidInputError) as refused:
        plan(cuts=(BlockCut("noise_refiner", 0, kept=False), *cuts[1:]))
    assert refused.value.key == "plan_refiners"


WISH = {"model": "tiny", "kinds": "heads, ffn", "ratio": "0.25"}


def test_a_wish_is_read_from_texts():
    wish = parse_prune({**WISH, "criterion": "taylor", "seed": "7", "gigabytes": ""})
    assert wish == PruneRequest(model="tiny", kinds=("ffn", "heads"), criterion="taylor", ratio=0.25, seed=7)
    assert wish.target == {"ratio": 0.25} and parse_prune(asdict(wish)) == wish


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ratio": 0}, "ratio"),
        ({"ratio": 1}, "ratio"),
        ({"ratio": "nan"}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"ratio": -0.5}, "ratio"),
        ({"ratio": True}, "ratio"),
        ({"ratio": None}, "target"),
        ({"gigabytes": 3}, "target"),
        ({"ratio": None, "gigabytes": 0}, "gigabytes"),
        ({"ratio": None, "speedup": 1}, "speedup"),
        ({"ratio": None, "speedup": math.inf}, "speedup"),
        ({"kinds": "ffn,nose"}, "kinds"),
        ({"kinds": ""}, "kinds"),
        ({"kinds": ["ffn", 3]}, "kinds"),
        ({"kinds": "dim,ffn"}, "kinds"),
        ({"criterion": "best"}, "criterion"),
        ({"prompts": 0}, "prompts"),
        ({"protect_ends": "yes"}, "protect_ends"),
        ({"seed": 1.5}, "seed"),
        ({"ration": 0.5}, "ration"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused_by_name(change, field):
    with pytest.raises(InvalidInputError) as refused:
        parse_prune({**WISH, **change})
    assert refused.value.field == field


@pytest.mark.parametrize("value", ["nan", math.nan, 0, 1, "half", -0.5, True, [0.5], 10**400])
def test_a_refused_ratio_is_named_with_its_bounds_and_a_remedy(value):
    with pytest.raises(InvalidInputError) as refused:
        parse_prune({**WISH, "ratio": value})
    assert str(value)[:80] in str(refused.value)
    assert "more than 0 and less than 1. Try 0.4" in str(refused.value)


def test_a_field_that_is_not_known_is_refused_with_those_that_come_near():
    with pytest.raises(InvalidInputError) as refused:
        parse_prune({**WISH, "ration": 0.5})
    assert "called ration" in str(refused.value) and "nearest: ratio," in str(refused.value)
    assert len(str(refused.value)) < 140


@pytest.mark.parametrize("name", ["", ".", "..", "a..b", ".a", "a/b", "a b", "x" * 65, "ö", 3, None, "a\n"])
def test_names_of_models_are_plain(name):
    with pytest.raises(InvalidInputError):
        artifact_name(name)
    assert artifact_name("Half-size_2.1") == "Half-size_2.1"
