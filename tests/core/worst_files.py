"""The worst files and texts we could construct: each aims at one place where a reader could grow or turn in circles."""

import json
import struct
import zlib
from collections.abc import Callable

from tests.core.foreign_samples import A1111, chunk, exif
from zimage_studio.core.metadata.limits import MAX_FILE_BYTES, MAX_PARTS, MAX_TEXT_BYTES
from zimage_studio.core.metadata.png import SIGNATURE
from zimage_studio.records.recipe import ModelIdentity, Numerics, Outcome, Recipe
from zimage_studio.records.request import GenerationRequest

ROOM = MAX_TEXT_BYTES - 200
COMMENT = 0x9286
LAST_LINE = "\nSteps: 8, Seed: 1, Size: 512x512"
ZLIB_HEAD = b"\x78\x9c"


def _blocks(bits: str) -> bytes:
    """Eight blocks of a deflate stream, as the bits of one in the order they stand in the stream."""
    stream = bits * 8
    return bytes(int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8))


FIXED_BLOCK = _blocks("010" + "0000000")
"""No text, fixed codes: only the end of the block."""
TABLES_BLOCK = _blocks(
    "001" + "00000" + "00000" + "0111"  # codes of their own: 257 letters, 1 distance, 18 lengths
    + "000" * 2 + "100" + "000" * 14 + "100"  # the lengths 18 (many zeros) and 1 take one bit each
    + "1" + "1111111" + "1" + "0101011"  # 138 and 117 letters that do not occur
    + "00" + "0" + "1"  # the last letter and the end take one bit, so does the distance; the end
)  # fmt: skip
"""No text, but code tables that must be built each time: 11 bytes a block."""


def a_recipe() -> Recipe:
    """A small recipe."""
    return Recipe(
        request=GenerationRequest(prompt="a", seed=1, width=64, height=64, steps=1, guidance=0.0),
        model=ModelIdentity(key="k", name="n", sha256="0" * 64),
        numerics=Numerics(
            device="cpu", dtypes={}, attention_backend="native", memory={}, scheduler={}, sigmas=(), sequence_length=64
        ),
        stack={},
        outcome=Outcome(pixels_sha256="0" * 64, latents_sha256="0" * 64, seconds=1.0),
        created="",
        job="",
    )


def repeated(unit: str, room: int = ROOM) -> str:
    return unit * (room // len(unit.encode()))


def numbered(form: str, room: int = ROOM) -> str:
    """`form` with 0, 1, 2, … for `#`, joined by commas."""
    each = len(form) + 6 * form.count("#")
    return ",".join(form.replace("#", str(number)) for number in range(room // each))


def _graph(nodes: dict[str, object]) -> str:
    return json.dumps(nodes, separators=(",", ":"))


def _reroutes(kind: str, inputs: Callable[[int], dict[str, object]], count: int) -> str:
    """A chain of 49 reroutes, and nodes whose many links all lead through it."""
    chain: dict[str, object] = {
        str(at): {"class_type": "Reroute", "inputs": {"": [str(at + 1), 0]}} for at in range(49)
    }
    chain["49"] = {"class_type": "KSampler", "inputs": {"seed": 1}}
    chain["50"] = {"class_type": kind, "inputs": inputs(count)}
    return _graph(chain)


TEXTS: dict[str, Callable[[], str]] = {
    "one word": lambda: repeated("a"),
    "spaces": lambda: "a\nx" + repeated(" ") + "y",
    "line breaks": lambda: "a" + repeated("\n") + "b" + LAST_LINE,
    "short lines": lambda: repeated("ab\n") + LAST_LINE,
    "negative lines": lambda: repeated("\nNegative prompt:") + LAST_LINE,
    "negative and spaces": lambda: "a\nNegative prompt:" + repeated(" ") + "x" + LAST_LINE,
    "NUL": lambda: repeated("\0") + LAST_LINE,
    "loras": lambda: repeated("<lora:a:1>") + LAST_LINE,
    "unclosed loras": lambda: repeated("<lora:") + LAST_LINE,
    "quotes and commas": lambda: "a\n" + repeated('aa:",', 99_000),
    "quoted commas": lambda: "a\n" + repeated('a:"b\\"', 99_000),
    "backslashes": lambda: 'a\nSteps:"' + repeated("\\", 99_000),
    "colons": lambda: "a\n" + repeated("aa:        ", 99_000),
    "words": lambda: "a\n" + repeated("a" * 61 + " ", 99_000),
    "pairs": lambda: "a\n" + numbered("a#: ", 99_000),
    "long last line": lambda: "a\n" + numbered("a#: "),
    "lists in lists": lambda: "{" + f'"a":[{",".join(["[" * 97 + "]" * 97] * (ROOM // 196))}]' + "}",
    "objects in objects": lambda: (
        "{" + f'"a":[{",".join([chr(123) + (chr(34) * 2 + ":{") * 90 + "}" * 91] * (ROOM // 455))}]' + "}"
    ),
    "empty lists": lambda: '{"a":[' + repeated("[],") + "[]]}",
    "empty objects": lambda: '{"a":[' + repeated("{},") + "{}]}",
    "small objects": lambda: '{"a":[' + repeated('{"":0},') + "{}]}",
    "floats": lambda: '{"a":[' + repeated("1e1,") + "0]}",
    "long numbers": lambda: '{"a":[' + repeated("9" * 4300 + ",") + "0]}",
    "one long number": lambda: '{"sui_image_params":{"seed":' + repeated("9") + "}}",
    "one long fraction": lambda: '{"sui_image_params":{"sigmashift":1.' + repeated("1") + "}}",
    "a number as text": lambda: '{"sui_image_params":{"sigmashift":"1.' + repeated("1") + '"}}',
    "a million keys": lambda: "{" + numbered('"#":0') + "}",
    "keys of SwarmUI": lambda: '{"sui_image_params":{' + numbered('"#":0') + "}}",
    "keys of InvokeAI": lambda: '{"app_version":"",' + numbered('"#":[]') + "}",
    "keys of Fooocus": lambda: '{"base_model":"","performance":"",' + numbered('"#":{}') + "}",
    "one long key": lambda: '{"sui_image_params":{"' + repeated("k") + '":1}}',
    "unprintable": lambda: '{"sui_image_params":{"seed":"' + repeated("\x7f") + '"}}',
    "escaped surrogates": lambda: '{"sui_image_params":{"prompt":"' + repeated("\\ud800") + '"}}',
    "nodes": lambda: "{" + numbered('"#":{"class_type":"KSampler","inputs":{"model":["#",0]}}') + "}",
    "links": lambda: _reroutes("SaveImage", lambda n: {f"{i}": ["0", 0] for i in range(n)}, 100_000),
    "links to nowhere": lambda: '{"1":{"class_type":"SaveImage","inputs":{' + numbered('"#":["#",0]') + "}}}",
    "models in circles": lambda: (
        '{"1":{"class_type":"KSampler","inputs":{"model":["2",0]}},"2":{"class_type":"LoraLoader","inputs":{"model":["2",0],'
        + numbered('"#":0')
        + "}}}"
    ),
    "a graph in a text": lambda: json.dumps({"prompt": '{"a":[' + repeated("[],", ROOM - 99) + "[]]}"}),
    "own, other schema": lambda: (
        '{"request":1,"model":1,"numerics":1,"outcome":1,"schema":[' + repeated("[],", ROOM - 99) + "1]}"
    ),
    "own, strange keys": lambda: a_recipe().to_json()[:-1] + "," + numbered('"x#":0', ROOM - 9999) + "}",
    "own, wrong stack": lambda: _own(stack='{"request":' + "{}," + numbered('"x#":0', ROOM - 9999) + "}"),
    "own, wrong sigmas": lambda: _own(sigmas='["",' + repeated('"",', ROOM - 9999) + '""]'),
    "own, right sigmas": lambda: _own(sigmas="[" + repeated("1.0,", ROOM - 9999) + "1.0]"),
    "own, deep": lambda: _own(memory='{"a":' * 95 + "1" + "}" * 95),
}
"""Each may stand in any text of any container, or be pasted."""


def _own(**parts: str) -> str:
    """Our recipe with the JSON of one field replaced."""
    data = json.loads(a_recipe().to_json())
    for name in parts:
        (data if name in data else data["numerics"])[name] = f"@{name}@"
    text = json.dumps(data)
    for name, part in parts.items():
        text = text.replace(f'"@{name}@"', part)
    return text


def _png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def _many(each: bytes, room: int = MAX_FILE_BYTES - 100) -> bytes:
    return each * min(MAX_PARTS - 10, room // len(each))


def _packed(block: bytes) -> bytes:
    """Chunks of 2 MB that hold nothing."""
    return _png(_many(chunk(b"zTXt", b"a\0\0" + ZLIB_HEAD + block * (MAX_TEXT_BYTES // len(block)))))


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def _webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _overlapping(raw: bytes) -> bytes:
    """An EXIF block in which every tag that is read points at the same bytes."""
    tags = (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x927C, COMMENT)
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags))
    at = len(head) + 12 * len(tags) + 4
    entries = b"".join(struct.pack(">HHII", tag, 7, len(raw), at) for tag in tags)
    return head + entries + bytes(4) + raw


FILES: dict[str, Callable[[], bytes]] = {
    "64 MB of pixels": lambda: _png(chunk(b"IDAT", bytes(MAX_FILE_BYTES - 100))),
    "64 MB and one byte": lambda: SIGNATURE + bytes(MAX_FILE_BYTES),
    "20,000 small chunks": lambda: _png(*(chunk(b"tEXt", b"%d\0" % n + b"x" * 80) for n in range(MAX_PARTS - 10))),
    "20,000 wide chunks": lambda: _png(_many(chunk(b"IDAT", bytes(3300)))),
    "packed nothing": lambda: _packed(FIXED_BLOCK),
    "packed nothing, with tables": lambda: _packed(TABLES_BLOCK),
    "packed bombs": lambda: _png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))),
    "a bomb in a bomb": lambda: _png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(zlib.compress(bytes(2**30), 9), 9))),
    "long keys": lambda: _png(_many(chunk(b"tEXt", b"k" * 2 * 2**20))),
    "long languages": lambda: _png(_many(chunk(b"iTXt", b"k\0\0\0" + b"e" * 2 * 2**20 + b"\0\0"))),
    "broken UTF-8": lambda: _png(chunk(b"iTXt", b"parameters\0\0\0\0\0" + b"\xff" * ROOM)),
    "astral UTF-8": lambda: _png(chunk(b"iTXt", b"parameters\0\0\0\0\0" + "\U0001f600".encode() * (ROOM // 4))),
    "one JPEG comment after the other": lambda: b"\xff\xd8" + _many(_segment(0xFE, b"\xff" * 3300)) + b"\xff\xd9",
    "wide JPEG comments": lambda: b"\xff\xd8" + _many(_segment(0xFE, b"\xff" * 65_000)) + b"\xff\xd9",
    "JPEG fill bytes": lambda: b"\xff\xd8" + _many(b"\xff" * 3200 + b"\xd0") + b"\xff\xd9",
    "JPEG fill bytes only": lambda: b"\xff\xd8" + b"\xff" * (MAX_FILE_BYTES - 2),
    "overlapping tags": lambda: _webp((b"EXIF", _overlapping(b"x" * (MAX_TEXT_BYTES // 7)))),
    "overlapping tags, too large": lambda: _webp((b"EXIF", _overlapping(b"x" * MAX_TEXT_BYTES))),
    "a folder that is its own inside": lambda: _webp(
        (b"EXIF", b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x8769, 4, 1, 8) + bytes(4))
    ),
    "65,535 tags": lambda: _webp((b"EXIF", b"MM\0*" + struct.pack(">IH", 8, 65_535) + bytes(12) * 65_535)),
    **{
        f"user comment: {name}": lambda raw=raw: _webp((b"EXIF", exif({}, inner={COMMENT: raw})))
        for name, raw in {
            "lone surrogates": b"UNICODE\0" + b"\xd8\x00" * (ROOM // 2),
            "surrogates in both orders": b"UNICODE\0" + b"\xd8\xd8" * (ROOM // 2),
            "a byte order mark": b"UNICODE\0\xff\xfe" + b"\x00\xd8" * (ROOM // 2),
            "broken JIS": b"JIS\0\0\0\0\0" + b"\xff" * ROOM,
            "JIS escapes": b"JIS\0\0\0\0\0" + b"\x1b$B\x1b(B" * (ROOM // 6),
            "broken UTF-8": b"\0" * 8 + b"\xe4" * ROOM,
        }.items()
    },
    "20,000 WebP chunks": lambda: _webp(*[(b"JUNK", bytes(3300))] * (MAX_PARTS - 10)),
    "all keys at once": lambda: _png(
        *(
            chunk(b"iTXt", key + b"\0\0\0\0\0" + b'{"a":[' + b"[]," * 130_000 + b"[]]}")
            for key in (b"zimage_studio", b"parameters", b"invokeai_metadata", b"prompt", b"workflow")
        )
    ),
    "a real one, 64 MB": lambda: _png(
        chunk(b"iTXt", b"parameters\0\0\0\0\0" + A1111.encode()), chunk(b"IDAT", bytes(MAX_FILE_BYTES - 2000))
    ),
}
