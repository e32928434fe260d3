"""What goes into a PNG comes out again, and hostile files are refused quickly and small."""

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.recipes import recipes
from zimage_studio.core.metadata.infotext import parse_infotext, to_infotext
from zimage_studio.core.metadata.inspect import inspect_file
from zimage_studio.core.metadata.png import OWN_KEY, SIGNATURE, read_own_recipe, read_texts, write_png
from zimage_studio.errors import UserError
from zimage_studio.records.recipe import Recipe

PIXELS = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@settings(max_examples=200, deadline=None)
@given(recipes())
def test_json_of_a_recipe_reads_back_equal(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe


@settings(max_examples=60, deadline=None)
@given(recipe=recipes())
def test_a_png_carries_its_recipe_and_its_pixels(recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "x.png"
    path.write_bytes(write_png(PIXELS, recipe))
    assert read_own_recipe(path) == recipe
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), PIXELS)
        assert image.text["parameters"] == to_infotext(recipe)


@settings(max_examples=200, deadline=None)
@given(recipes())
def test_the_infotext_can_be_read_by_its_own_rules(recipe):
    _prompt, _negative, pairs = parse_infotext(to_infotext(recipe))
    request = recipe.request
    assert int(pairs["Seed"]) == request.seed
    assert pairs["Size"] == f"{request.width}x{request.height}"
    assert float(pairs["CFG scale"]) == pytest.approx(request.guidance + 1, rel=1e-4)
    assert pairs["RNG"] == "CPU"


def test_unknown_keys_and_other_schemas_are_refused():
    with pytest.raises(ValueError, match="schema"):
        Recipe.from_json('{"schema": 99}')
    with pytest.raises(ValueError, match="path: Unexpected"):
        Recipe.from_json('{"schema": 1, "path": "/etc/passwd"}')


def test_an_infotext_of_another_program_is_converted_and_the_rest_listed(tmp_path):
    info = PngInfo()
    info.add_text(
        "parameters",
        "a cat\nNegative prompt: a dog\nSteps: 9, Sampler: DPM++ 2M, CFG scale: 5, Seed: 7, Size: 512x768, Model: x",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    found = inspect_file(tmp_path / "a.png").to_dict()
    assert found["dialect"] == "a1111"
    assert found["recipe"] == {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "steps": 9,
        "seed": 7,
        "guidance": 4.0,
        "width": 512,
        "height": 768,
        "model": "x",
    }
    assert [(c["field"], c["from"], c["to"]) for c in found["converted"]] == [
        ("guidance", "5", 4.0),
        ("sampler", "DPM++ 2M", None),
        ("noise", None, None),
    ]
    assert found["unknown"] == {"Sampler": "DPM++ 2M"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GIF89a", "not a PNG"),
        (SIGNATURE + b"\0\0", "cannot be read"),
        (SIGNATURE + struct.pack(">I4s", 2**31, b"tEXt"), "middle of a chunk"),
        (SIGNATURE + chunk(b"zTXt", b"parameters\0\0garbage"), "cannot be read"),
        (SIGNATURE + chunk(b"tEXt", b"a\0" + b"x" * (3 * 2**20)), "larger than 2 MB"),
        (SIGNATURE + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (50 * 2**20))), "larger than 2 MB"),
        (SIGNATURE + chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * (50 * 2**20))), "larger than 2 MB"),
        (SIGNATURE + chunk(b"tIME", b"") * 20_001, "more than 20000 chunks"),
    ],
    ids=["gif", "cut", "length", "zlib", "tEXt bomb", "zTXt bomb", "iTXt bomb", "chunks"],
)
def test_a_hostile_file_is_refused_in_little_memory(tmp_path, content, why):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=why):
        read_texts(path)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": NaN}', '{"schema": 1, "schema": 1}', "[" * 5000, '{"schema": 1, "request": 3}']
)
def test_a_broken_recipe_is_shown_as_unknown(tmp_path, text):
    info = PngInfo()
    info.add_itxt(OWN_KEY, text)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    found = inspect_file(tmp_path / "x.png")
    assert found.recipe is None
    assert OWN_KEY in found.unknown
    json.dumps(found.to_dict())


@settings(max_examples=300, deadline=1000)
@given(body=st.binary(max_size=400))
def test_any_bytes_give_an_answer_or_a_sentence(body, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x.png"
    path.write_bytes(SIGNATURE + body)
    try:
        inspect_file(path)
    except UserError as error:
        assert error.text("zh")
