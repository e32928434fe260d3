"""No file crashes the reader or makes it large: made of the parts of real formats, any of them a lie."""

import copy
import json
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.core import foreign_samples as samples
from tests.core import worst_files
from tests.core.foreign_samples import chunk, exif, jpeg, png, user_comment, webp
from tests.core.sound_answers import assert_sound
from tests.recipes import recipes
from zimage_studio.core.metadata.findings import MAX_LISTED
from zimage_studio.core.metadata.inspect import inspect_file, inspect_text, inspect_texts
from zimage_studio.core.metadata.png import OWN_KEY, SIGNATURE
from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.checks import real, whole
from zimage_studio.records.recipe import Recipe

COMMENT = 0x9286
KEYS = (OWN_KEY, "parameters", "invokeai_metadata", "prompt", "workflow", "comment", "ImageDescription")
JSON_SAMPLES = {
    "swarmui": json.loads(samples.SWARM),
    "invokeai": json.loads(samples.INVOKE),
    "fooocus": json.loads(samples.FOOOCUS),
    "comfyui": samples.ksampler_graph(),
    "comfyui, custom": samples.custom_graph(),
    OWN_KEY: worst_files.a_recipe().to_dict(),
}
INFOTEXTS = (samples.A1111, samples.SDNEXT, samples.FOOOCUS_A1111)
TEXTS = (*INFOTEXTS, *(json.dumps(data, ensure_ascii=False) for data in JSON_SAMPLES.values()))
EXAMPLES = settings(max_examples=150, deadline=None)


def read(content: bytes, folder) -> None:
    """An answer or a sentence."""
    path = folder / "case.bin"
    path.write_bytes(content)
    try:
        assert_sound(inspect_file(path))
    except UserError as error:
        assert error.text("en")
        assert error.text("zh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---- parts -----------------------------------------------------------------------------------------------------------

TEXT = st.sampled_from(TEXTS) | st.text(max_size=30)
RAW = st.binary(max_size=40) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
KEY = st.sampled_from([key.encode() for key in KEYS]) | st.binary(max_size=90)
NUMBER_16 = st.integers(0, 2**16 - 1)
NUMBER_32 = st.sampled_from([0, 1, 8, 2**31 - 1, 2**31, 2**32 - 12, 2**32 - 1]) | st.integers(0, 200)
PACKED = st.builds(
    lambda raw, times, cut, tail: _packed(raw, times)[: len(_packed(raw, times)) - cut] + tail,
    RAW, st.integers(0, 2), st.integers(0, 8), st.sampled_from([b"", b"\0", worst_files.FIXED_BLOCK]),
)  # fmt: skip


def _packed(raw: bytes, times: int) -> bytes:
    for _ in range(times):
        raw = zlib.compress(raw)
    return raw


TAGS = st.sampled_from([0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8769, 0x927C, COMMENT, 0x8825, 0x0201]) | NUMBER_16
ENTRIES = st.lists(st.tuples(TAGS, st.integers(0, 14), NUMBER_32, NUMBER_32), max_size=6)


@st.composite
def exif_blocks(draw) -> bytes:
    """Folders with any tags, types, lengths and places: into themselves, past the end, over each other."""
    if draw(st.booleans()):
        order = draw(st.sampled_from("<>"))
        comment = draw(st.sampled_from(["utf-16-be", "utf-16-le", "utf-16", "utf-8"]))
        text = draw(TEXT).encode("utf-8", "replace").decode()
        return exif({0x0110: draw(RAW) + b"12345"}, inner={COMMENT: user_comment(text + "12345", comment)}, order=order)
    order, entries = draw(st.sampled_from("<>")), draw(ENTRIES)
    count = draw(st.just(len(entries)) | NUMBER_16)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", draw(st.just(8) | NUMBER_32), count)
    return head + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries) + draw(RAW)


CHUNK_BODIES = {
    b"tEXt": st.builds(lambda key, raw: key + b"\0" + raw, KEY, RAW),
    b"zTXt": st.builds(lambda key, raw: key + b"\0\0" + raw, KEY, PACKED),
    b"iTXt": st.builds(
        lambda key, flag, language, raw: key + b"\0" + flag + b"\0" + language + b"\0\0" + raw,
        KEY, st.sampled_from([b"\0", b"\1", b"\2"]), st.binary(max_size=5), PACKED | RAW,
    ),
    b"eXIf": exif_blocks(),
    b"IDAT": RAW,
    b"IEND": st.just(b""),
    b"????": RAW,
}  # fmt: skip
LIES = st.sampled_from([0, 0, 0, 0, 1, -1, 12, 2**31 - 1])
"""What a length is wrong by."""


@st.composite
def pngs(draw) -> bytes:
    parts = [SIGNATURE]
    for kind in draw(st.lists(st.sampled_from(sorted(CHUNK_BODIES)), max_size=6)):
        body = draw(CHUNK_BODIES[kind] | RAW)
        length = (len(body) + draw(LIES)) % 2**32
        checksum = zlib.crc32(kind + body) + draw(st.integers(0, 1))
        parts.append(struct.pack(">I", length) + kind + body + struct.pack(">I", checksum % 2**32))
    return b"".join(parts)[: draw(st.sampled_from([None, -1, -4, -12]))]


@st.composite
def jpegs(draw) -> bytes:
    parts = [b"\xff\xd8"]
    for marker in draw(st.lists(st.sampled_from([0xE1, 0xFE, 0xE0, 0xD0, 0x01, 0xFF, 0xC0, 0xDA, 0xD9]), max_size=8)):
        body = draw(st.builds(lambda block: b"Exif\0\0" + block, exif_blocks()) if marker == 0xE1 else RAW)
        length = struct.pack(">H", (len(body) + 2 + draw(LIES)) % 2**16)
        parts.append(b"\xff" * draw(st.integers(1, 3)) + bytes([marker]) + length + body)
    return b"".join(parts)


@st.composite
def webps(draw) -> bytes:
    parts = [b"RIFF" + struct.pack("<I", draw(NUMBER_32)) + b"WEBP"]
    for kind in draw(st.lists(st.sampled_from([b"EXIF", b"XMP ", b"VP8 "]), max_size=5)):
        body = draw(exif_blocks() | exif_blocks().map(lambda block: b"Exif\0\0" + block) | RAW)
        length = struct.pack("<I", (len(body) + draw(LIES)) % 2**32)
        parts.append(kind + length + body + b"\0" * (len(body) % 2))
    return b"".join(parts)


@EXAMPLES
@given(content=pngs() | jpegs() | webps())
@example(content=SIGNATURE + chunk(b"zTXt", b"a\0\0" + worst_files.ZLIB_HEAD + worst_files.TABLES_BLOCK * 9))
@example(content=webp(b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x8769, 4, 1, 8) + bytes(4)))  # inside itself
def test_any_parts_of_a_container_give_an_answer_or_a_sentence(content, folder):
    read(content, folder)


REAL = [
    *(png(**{key: text}) for key, text in zip(("parameters", "parameters", "parameters", *KEYS), TEXTS, strict=False)),
    *(jpeg(exif({}, inner={COMMENT: user_comment(text, code)}), b"comment")
      for text in TEXTS for code in ("utf-16-be", "utf-8")),
    *(webp(exif({}, inner={COMMENT: user_comment(text, "utf-16-le")}, order="<")) for text in TEXTS),
    webp(exif({0x010F: b"workflow:{}12345", 0x0110: b"prompt:" + json.dumps(samples.custom_graph()).encode()})),
    SIGNATURE + chunk(b"zTXt", b"parameters\0\0" + zlib.compress(samples.SWARM.encode())) + chunk(b"IEND", b""),
    SIGNATURE + chunk(b"eXIf", exif({}, inner={COMMENT: user_comment(samples.A1111)})) + chunk(b"IEND", b""),
]  # fmt: skip


@EXAMPLES
@given(data=st.data())
def test_a_real_file_cut_spliced_and_repeated_gives_an_answer_or_a_sentence(data, folder):
    """test_foreign_metadata.py changes single bytes; here whole stretches move."""
    content = data.draw(st.sampled_from(REAL))
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.integers(0, len(content))) for _ in range(2))
        piece = content[start:end]
        other = data.draw(st.sampled_from(REAL))
        content = data.draw(st.sampled_from([
            content[:start] + content[end:], content[:end] + piece + content[end:], content[:end],
            content[:start] + other[start:], content[:start] + piece[::-1] + content[end:],
            content[:start] + bytes(len(piece)) + content[end:], content[:start] + b"\xff" * len(piece) + content[end:],
        ]))  # fmt: skip
    read(content, folder)


# ---- JSON of every dialect, with any value anywhere ------------------------------------------------------------------

NASTY = st.sampled_from([
    None, True, False, 0, -1, 2**63, 2**64, 10**400, -(10**400), 10**4000, 0.1, -0.0, 1e308, 5e-324, float("nan"),
    float("inf"), "", " ", "…", "\0", "\ud800", "a\udfffb", "0.36.\ud800", "1e999", "-1e-5", "９", "²", "0x10", "1_0",
    "8.0", "NaN", "inf", '"', "\\", "x" * 3000, "euler", "<lora:a:1>", "<|im_end|>", [], {}, [[]], [{}], {"": {}},
    ["1", 0], [1, 0], ["44", 0], [None, 0], [[], 0], [True, 0], ["0" * 200, 0], {"class_type": "KSampler"},
    {"class_type": "KSampler", "inputs": []}, {"class_type": 3}, {"name": 3}, {"seed": 1, "strength": 0.5},
])  # fmt: skip
NASTY_KEYS = st.sampled_from(["…", "", "a node", "x" * 300, "\0", "\ud800", "__proto__", "path", "size", "Steps", "0"])


def _places(data: object) -> list[tuple]:
    """Every container in `data` with each of its keys."""
    found, queue = [], [data]
    while queue:
        parent = queue.pop()
        if isinstance(parent, dict | list):
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            found += [(parent, key) for key in keys]
            queue += [parent[key] for key in keys]
    return found


@st.composite
def changed_json(draw) -> tuple[str, str]:
    """(dialect, JSON): a sample in which one to four values, or keys, are something else."""
    dialect = draw(st.sampled_from(sorted(JSON_SAMPLES)))
    data = copy.deepcopy(JSON_SAMPLES[dialect])
    for _ in range(draw(st.integers(1, 4))):
        parent, key = draw(st.sampled_from(_places(data)))
        match draw(st.sampled_from(["value", "value", "value", "key", "gone"])):
            case "value":
                parent[key] = copy.deepcopy(draw(NASTY))
            case "key" if isinstance(parent, dict):
                parent[draw(NASTY_KEYS)] = parent.pop(key)
            case "gone" if isinstance(parent, dict) and len(data) > 1:
                del parent[key]
    return dialect, json.dumps(data, ensure_ascii=draw(st.booleans()))


@settings(max_examples=400, deadline=None)
@given(changed_json())
@example(("swarmui", '{"sui_image_params": {"sigmashift": 1' + "0" * 400 + "}}"))
@example(("invokeai", '{"app_version": "", "cfg_scale": -1' + "0" * 400 + "}"))
@example(("swarmui", '{"sui_image_params": {"prompt": "a", "steps": 9, "diffusers": "0.36.\\ud800"}}'))
def test_any_value_anywhere_in_the_json_of_a_dialect_gives_a_sound_answer(changed):
    dialect, text = changed
    key = {"invokeai": "invokeai_metadata", "fooocus": "parameters"}.get(dialect, "prompt")
    for texts in ({key: text}, {"parameters": text}, {OWN_KEY: text}, {"parameters": text, "fooocus_scheme": "a1111"}):
        assert_sound(inspect_texts(texts))


@EXAMPLES
@given(recipe=recipes(), data=st.data())
def test_a_recipe_with_wrong_types_is_no_recipe_or_a_whole_one(recipe, data):
    fields = json.loads(recipe.to_json())
    parent, key = data.draw(st.sampled_from(_places(fields)))
    parent[key] = copy.deepcopy(data.draw(NASTY))
    text = json.dumps(fields)
    assert_sound(inspect_text(text))
    try:
        read_back = Recipe.from_json(text)
    except ValueError as error:
        assert len(str(error)) < 20_000
    else:
        assert Recipe.from_json(read_back.to_json()) == read_back


# ---- infotexts -------------------------------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from([
    "Steps", "Seed", "Size", "CFG scale", "Sampler", "Model", "RNG", "Shift", "App", "Pipeline", "Raw prompt", "a", "é",
    "一", ":", ": ", ",", ", ", '"', '\\"', "\\", "\\u00", "\\ud800", "\ud800", "\0", "\n", "\r", " ", "\u3000",
    "x", "×", "512x512", "8", "-1", "1e9", "0.5", "9" * 400, "SD.Next", "ZImagePipeline", "CPU", "GPU", "Euler",
    "Negative prompt:", "\nNegative prompt: ", "\nSteps: 8, Seed: 1, Size: 512x512", "{", "}", "<lora:", ">", "…",
])  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map("".join))
@example("a\n" + '"Steps: 8", Seed: "5, Size: 5x5' + '"' * 50)
def test_any_shuffle_of_quotes_commas_and_keys_gives_a_sound_answer(text):
    assert_sound(inspect_text(text))
    for scheme in ("a1111", "fooocus"):
        assert_sound(inspect_texts({"parameters": text, "fooocus_scheme": scheme}))


# ---- what was found --------------------------------------------------------------------------------------------------


def test_a_strangers_ellipsis_does_not_end_the_count_of_what_is_not_shown():
    keys = {"…": "not a number", **{str(number): 0 for number in range(MAX_LISTED + 9)}}
    found = inspect_text(json.dumps({"sui_image_params": keys}))
    assert found.unknown["…"] == "+10"
    assert_sound(found)


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_whole_number_beyond_every_float_is_out_of_range(number):
    for check in (real, whole):
        with pytest.raises(InvalidInputError, match="must be from 0 to 20"):
            check("guidance", number, 0, 20)


def test_an_input_of_any_name_does_not_hide_a_node():
    graph = samples.ksampler_graph()
    graph["44"]["inputs"]["a node"] = "39"
    found = inspect_texts({"prompt": json.dumps(graph)})
    assert "39 CLIPLoader" in found.unknown


def test_many_links_into_one_long_chain_are_followed_once():
    """Counted in calls, because time proves nothing on a busy machine."""
    few, many = (_calls(lambda n=n: inspect_text(_chained(n))) for n in (1000, 2000))
    assert (many - few) / 1000 < 25, "each further link costs a walk along the chain"


def _chained(links: int) -> str:
    graph = {str(at): {"class_type": "Reroute", "inputs": {"": [str(at + 1), 0]}} for at in range(45)}
    graph["45"] = {"class_type": "KSampler", "inputs": {"seed": 1}}
    graph["46"] = {"class_type": "SaveImage", "inputs": {str(number): ["0", 0] for number in range(links)}}
    return json.dumps(graph)


def _calls(work) -> int:
    counted = 0

    def count(_frame, event, _argument) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("block", [worst_files.FIXED_BLOCK, worst_files.TABLES_BLOCK], ids=["fixed", "tables"])
def test_packed_texts_of_no_length_are_refused_when_they_are_long(block, tmp_path):
    path = tmp_path / "x.png"
    empty = chunk(b"zTXt", b"a\0\0" + worst_files.ZLIB_HEAD + block * 100)
    path.write_bytes(SIGNATURE + empty * 9)
    assert inspect_file(path).unknown == {"a": ""}
    path.write_bytes(SIGNATURE + empty * (5 * 2**20 // len(empty)))
    with pytest.raises(UserError, match="larger than 2 MB"):
        inspect_file(path)


@pytest.mark.parametrize(
    "text", [worst_files.TEXTS[name]() for name in ("own, strange keys", "own, wrong stack", "own, wrong sigmas")]
)
def test_a_recipe_that_would_give_a_million_complaints_gives_one(text):
    with pytest.raises(ValueError, match=r"at most \d+ are read|more than \d+ values"):
        Recipe.from_json(text)


def test_reasons_are_short_whatever_the_value():
    data = {"prompt": "a", "seed": "\x7f" * 10**5, "steps": "9" * 10**5, "width": "é" * 10**5, "height": [0] * 10**4}
    found = inspect_text(json.dumps({"sui_image_params": data}))
    assert {"seed", "steps", "size"} <= {conversion.field for conversion in found.converted}
    assert_sound(found)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
def test_the_worst_files_are_read_in_256_mb(tmp_path):
    """See docs/metadata.md for the measured figures; `python -m benchmarks.worst_metadata` prints them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.confined", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == len(worst_files.FILES) + len(worst_files.TEXTS)
    assert not [cost for cost in costs if "error" in cost]
    assert max(cost["resident_mb"] for cost in costs) < 256
    assert max(cost["answer_chars"] for cost in costs) < 4 * 2**20
