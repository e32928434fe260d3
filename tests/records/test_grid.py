"""What a grid can vary, and what its cells are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.grid import FIELDS, Axis, GridPlan, parse_axis, plan_grid, plan_neighbourhood
from zimage_studio.records.request import GenerationRequest, ModelDefaults, Variation

DEFAULTS = ModelDefaults(width=128, height=128)


def base(**changes: object) -> GenerationRequest:
    values = {"prompt": "a red circle", "seed": 7, "width": 128, "height": 128, "steps": 8, "guidance": 2.0}
    return GenerationRequest(**{**values, **changes})


def grid(x: Axis, y: Axis | None = None, **changes: object) -> GridPlan:
    return plan_grid(base(**changes), "tiny", x, y, defaults=DEFAULTS)


def test_two_axes_give_every_pair_and_keep_the_rest():
    plan = grid(parse_axis("seed", "1, 2, 3"), parse_axis("steps", [4, 8]))
    assert (plan.columns, plan.rows, len(plan.cells)) == (3, 2, 6)
    for cell in plan.cells:
        assert cell.request == base(seed=(1, 2, 3)[cell.column], steps=(4, 8)[cell.row])


def test_the_base_is_among_the_cells_bit_for_bit():
    plan = grid(parse_axis("guidance", "0,2,4"), variations=(Variation(seed=3, strength=0.2),), variety=0.5)
    assert plan.cells[1].request == base(variations=(Variation(seed=3, strength=0.2),), variety=0.5)


def test_a_prompt_axis_replaces_its_first_value():
    plan = grid(parse_axis("prompt", 'red,blue,"dark, grey"'))
    assert [cell.request.prompt for cell in plan.cells] == ["a red circle", "a blue circle", "a dark, grey circle"]


def test_sizes_are_written_as_everywhere():
    plan = grid(parse_axis("size", "128x128, 64×96"))
    assert [(cell.request.width, cell.request.height) for cell in plan.cells] == [(128, 128), (64, 96)]


def test_models_are_varied_beside_the_request():
    plan = grid(parse_axis("model", "tiny,other"), parse_axis("seed", "1,2"))
    assert [cell.model for cell in plan.cells] == ["tiny", "other", "tiny", "other"]


def test_a_variation_axis_sets_the_last_variation():
    links = (Variation(seed=1, strength=0.1), Variation(seed=2, strength=0.2))
    plan = grid(parse_axis("variation_strength", "0,0.5"), variations=links)
    assert [cell.request.variations for cell in plan.cells] == [links[:1], (links[0], Variation(seed=2, strength=0.5))]
    plan = grid(parse_axis("variation_seed", "8,9"), parse_axis("variation_strength", "0.3"))
    assert [cell.request.variations for cell in plan.cells] == [
        (Variation(seed=8, strength=0.3),),
        (Variation(seed=9, strength=0.3),),
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: parse_axis("colour", "1"), ["'colour'", "seed", "steps"]),
        (lambda: parse_axis(None, "1"), ["None", "seed"]),
        (lambda: parse_axis("seed", ""), ["seed", "no values"]),
        (lambda: parse_axis("seed", 5), ["seed", "no values"]),
        (lambda: parse_axis("seed", "1,2,1"), ["seed", "1", "twice"]),
        (lambda: parse_axis("seed", range(33)), ["seed", "33", "32"]),
        (lambda: grid(parse_axis("seed", range(32)), parse_axis("steps", range(1, 33))), ["1024", "256"]),
        (lambda: grid(parse_axis("seed", "1"), parse_axis("seed", "2")), ["Both", "seed"]),
        (lambda: grid(parse_axis("steps", "8,0")), ["number of steps", "0", "200"]),
        (lambda: grid(parse_axis("guidance", "2,warm")), ["guidance", "'warm'"]),
        (lambda: grid(parse_axis("size", "128x100")), ["height", "100", "16"]),
        (lambda: grid(parse_axis("size", "128")), ["128", "WIDTHxHEIGHT"]),
        (lambda: grid(parse_axis("prompt", "green,blue")), ["green", "does not contain"]),
        (lambda: grid(parse_axis("variation_seed", "1,2")), ["variation seed", "strength"]),
        (lambda: grid(parse_axis("strength", "0.5")), ["no start picture"]),
        (lambda: plan_neighbourhood(base(), "tiny", strength=0), ["variation strength", "0", "0.01"]),
        (lambda: plan_neighbourhood(base(), "tiny", strength="much"), ["variation strength", "'much'"]),
        (lambda: plan_neighbourhood(base(), "tiny", strength=0.2, side=4), ["4", "odd"]),
        (lambda: plan_neighbourhood(base(), "tiny", strength=0.2, side=99), ["99", "7"]),
    ],
)
def test_what_cannot_be_a_grid_is_refused_in_one_sentence(make, words):
    with pytest.raises(InvalidInputError) as refusal:
        make()
    for word in words:
        assert word in str(refusal.value)


def test_a_neighbourhood_has_the_image_in_its_middle_and_a_new_variation_in_every_other_cell():
    started = base(variations=(Variation(seed=3, strength=0.4),))
    plan = plan_neighbourhood(started, "tiny", strength=0.15, seed=2**64 - 3, parent="0" * 64)
    requests = {(cell.column, cell.row): cell.request for cell in plan.cells}
    assert requests.pop((1, 1)) == started
    assert {request.variations[0] for request in requests.values()} == {started.variations[0]}
    last = [request.variations[1] for request in requests.values()]
    assert {link.strength for link in last} == {0.15}
    assert {link.seed for link in last} == {2**64 - 3, 2**64 - 2, 2**64 - 1, 0, 1, 2, 4, 5}  # 3 and 7 are taken


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8, unique=True), st.sampled_from(["", "0" * 64]))
def test_a_plan_survives_being_written(seeds, parent):
    plan = plan_grid(base(), "tiny", parse_axis("seed", seeds), None, defaults=DEFAULTS, parent=parent or None)
    assert GridPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "kind": "xy", "cells": 3}']
)
def test_a_damaged_plan_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        GridPlan.from_json(text)


def test_every_field_of_an_axis_has_a_name():
    from zimage_studio.messages import CATALOGUES

    for catalogue in CATALOGUES.values():
        assert all(f"field.{name}" in catalogue for name in FIELDS)
