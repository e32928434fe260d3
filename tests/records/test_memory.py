"""Memory profiles: what contradicts is refused by name, what is written can be read, nothing else can."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_studio.errors import InvalidInputError
from zimage_studio.records import memory
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile, needs_reload, parse_profile

VALUES = {
    "text_encoder_precision": ["auto", "bf16", "fp16", "fp32"],
    "transformer_precision": ["auto", "bf16", "fp16", "fp32"],
    "vae_precision": ["auto", "bf16", "fp16", "fp32"],
    "attention_backend": ["auto", "native_math", "sage"],
    "attention_slicing": [False, True],
    "attention_query_chunk": [0, 64, 1000, 16384],
    "feed_forward_chunks": [1, 4, 64],
    "vae_tile_px": [0, 32, 512, 2048],
    "vae_slicing": [False, True],
    "gradient_checkpointing": [False, True],
    "evict_text_encoder": [False, True],
    "embedding_cache": [0, 32, 4096],
    "model_offload": [False, True],
    "group_offload": ["none", "block", "leaf"],
    "group_offload_blocks": [1, 2],
    "group_offload_stream": [False, True],
    "group_offload_disk": [False, True],
    "fp8_storage": [False, True],
    "quantization": ["none", "int8", "fp8", "int4"],
    "compile": [False, True],
}


def test_every_switch_is_tried_here():
    assert VALUES.keys() == EXACT.switches.keys()


@st.composite
def profiles(draw: st.DrawFn) -> MemoryProfile:
    values = {name: draw(st.sampled_from(choices)) for name, choices in VALUES.items()}
    if values["group_offload"] == "none" or values["model_offload"]:
        values |= {"group_offload": "none", "group_offload_stream": False, "group_offload_disk": False}
    if values["group_offload_stream"]:
        values["group_offload_blocks"] = 1
    if values["quantization"] != "none":
        values |= {"fp8_storage": False, "group_offload_disk": False}
    if values["fp8_storage"]:
        values["compile"] = False
    name = draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
    return MemoryProfile(name=name, **values)


@given(profiles())
def test_what_is_written_can_be_read(profile):
    assert MemoryProfile.from_json(profile.to_json()) == profile
    assert parse_profile(profile.switches).same_switches(profile)
    assert parse_profile(profile.changed).same_switches(profile)
    assert profile.numerics.keys() <= profile.changed.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written_and_read(name):
    assert MemoryProfile.from_json(PRESETS[name].to_json()) == PRESETS[name]
    assert PRESETS[name].name == name


def test_presets_differ():
    for one, other in itertools.combinations(PRESETS.values(), 2):
        assert not one.same_switches(other), (one.name, other.name)


def test_exact_is_the_default_and_neither_lossy_nor_offloaded():
    assert EXACT.same_switches(MemoryProfile())
    assert EXACT.changed == EXACT.numerics == {}
    assert not any((EXACT.model_offload, EXACT.evict_text_encoder, EXACT.fp8_storage, EXACT.group_offload != "none"))


def other_value(name: str) -> object:
    return next(value for value in VALUES[name] if value != getattr(EXACT, name))


@pytest.mark.parametrize(("one", "other"), memory.EXCLUDE_EACH_OTHER)
def test_a_contradiction_is_refused_with_both_names(one, other):
    values = {one: other_value(one), other: other_value(other)}
    if one.startswith("group_offload_") or other.startswith("group_offload_"):
        values["group_offload"] = "block"
    with pytest.raises(InvalidInputError) as caught:
        MemoryProfile(**values)
    assert caught.value.key == "switches_exclude"
    assert {caught.value.values["field"], caught.value.values["other"]} == {one, other}


@pytest.mark.parametrize(("one", "other"), memory.NEED_EACH_OTHER)
def test_a_switch_that_needs_another_says_so(one, other):
    with pytest.raises(InvalidInputError) as caught:
        MemoryProfile(**{one: other_value(one)})
    assert caught.value.values == {"field": one, "other": other}
    MemoryProfile(**{one: other_value(one), other: other_value(other)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vae_tile_px", 100), ("vae_tile_px", 4096), ("vae_tile_px", True), ("vae_tile_px", 512.5),
        ("attention_query_chunk", 63), ("attention_query_chunk", -1), ("feed_forward_chunks", 0),
        ("feed_forward_chunks", 65), ("embedding_cache", -1), ("group_offload", "blocks"), ("group_offload", None),
        ("model_offload", "yes"), ("model_offload", 1), ("transformer_precision", "int8"), ("quantization", ["int8"]),
        ("attention_backend", "_flash_3_hub"), ("name", "x" * 61), ("name", "\ud800"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_refused_by_name(name, value):
    with pytest.raises(InvalidInputError) as caught:
        replace(EXACT, **{name: value})
    assert caught.value.field == name
    assert str(caught.value)


BAD_FILES = [
    "", "[]", "null", "{}", "{", '{"schema": 2}', '{"schema": true}', '{"schema": "1"}', '{"schema": 1.0}',
    '{"schema": 1, "tiling": true}', '{"schema": 1, "vae_tile_px": "512"}', '{"schema": 1, "vae_tile_px": NaN}',
    '{"schema": 1, "vae_tile_px": 1e99}', '{"schema": 1, "model_offload": 1}', '{"schema": 1, "schema": 1}',
    '{"schema": 1, "compile": null}', '{"schema": 1, "group_offload_disk": "/etc"}', "[" * 100_000,
    '{"schema": 1, "name": "' + "x" * 100 + '"}', '{"schema": 1, "vae_tile_px": 100}',
    '{"schema": 1, "model_offload": true, "group_offload": "block"}',
]  # fmt: skip


@pytest.mark.parametrize("source", BAD_FILES, ids=lambda source: source[:60])
def test_a_bad_file_is_refused_in_a_sentence(source):
    with pytest.raises(InvalidInputError) as caught:
        MemoryProfile.from_json(source)
    assert len(str(caught.value)) < 500


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*VALUES, "schema", "x"]), inner)))  # fmt: skip  # noqa: E501
def test_no_json_breaks_the_reader(value):
    try:
        MemoryProfile.from_json(json.dumps(value))
    except InvalidInputError as error:
        assert str(error)


def test_a_file_may_leave_out_what_is_as_usual():
    assert MemoryProfile.from_json('{"schema": 1, "vae_tile_px": 512}') == MemoryProfile(vae_tile_px=512)


def test_raw_values_change_a_base_and_unknown_names_are_refused():
    made = parse_profile({"vae_tile_px": "256", "compile": None}, PRESETS["text_out"])
    assert made.changed == {"evict_text_encoder": True, "vae_tile_px": 256}
    with pytest.raises(InvalidInputError, match="tiling"):
        parse_profile({"tiling": True})


def test_what_was_rounded_comes_back_only_from_disk():
    assert needs_reload(EXACT, PRESETS["streamed"]) == ()
    assert needs_reload(PRESETS["streamed"], EXACT) == ()
    assert needs_reload(EXACT, PRESETS["fp8_storage"]) == ()
    assert needs_reload(PRESETS["fp8_storage"], EXACT) == ("fp8_storage",)
    assert needs_reload(PRESETS["int8"], PRESETS["int4"]) == ("quantization",)
    assert needs_reload(EXACT, MemoryProfile(vae_precision="fp32")) == ("vae_precision",)
    assert needs_reload(PRESETS["int8"], replace(PRESETS["int8"], vae_tile_px=512)) == ()


def test_every_switch_has_a_name_in_both_languages():
    from zimage_studio.messages import CATALOGUES

    for catalogue in CATALOGUES.values():
        assert {f"field.{name}" for name in VALUES} <= catalogue.keys()


def test_every_preset_says_what_it_gives_up():
    from zimage_studio.messages import CATALOGUES

    for catalogue in CATALOGUES.values():
        assert {key for key in catalogue if key.startswith("preset.")} == {f"preset.{name}" for name in PRESETS}
