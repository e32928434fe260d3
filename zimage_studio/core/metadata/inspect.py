"""What a picture file or a pasted text says about its making, in our own terms: understood, converted, or listed.

Nothing here looks at anything but the text: no path, address or class named in it is followed or loaded.
"""

import re
from collections.abc import Callable
from pathlib import Path

from zimage_studio.core.metadata import comfyui
from zimage_studio.core.metadata.a1111 import read_infotext, take_pairs, take_texts
from zimage_studio.core.metadata.containers import read_picture_texts
from zimage_studio.core.metadata.findings import Conversion, Findings, Inspection
from zimage_studio.core.metadata.infotext import parse_infotext
from zimage_studio.core.metadata.json_dialects import read_fooocus, read_invokeai, read_swarmui
from zimage_studio.core.metadata.limits import MAX_TEXT_BYTES
from zimage_studio.core.metadata.png import INFOTEXT_KEY, OWN_KEY
from zimage_studio.errors import UserError
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.strict_json import loads_strict

__all__ = ["Conversion", "Inspection", "inspect_file", "inspect_text"]

_INVOKE_KEY = "invokeai_metadata"
_GRAPH_KEY, _EDITOR_KEY = "prompt", "workflow"
_SCHEME_KEY = "fooocus_scheme"
_OWN_FIELDS = {"request", "model", "numerics", "outcome"}


def inspect_file(path: Path, *, name: str | None = None) -> Inspection:
    """Read the texts of the PNG, JPEG or WebP at `path`; no pixel is decoded.

    Raises UserError when the file is none of these, is damaged, or is larger than 64 MB.
    """
    return inspect_texts(read_picture_texts(path, name=name))


def inspect_text(text: str) -> Inspection:
    """Read what a person pasted: our recipe, an infotext, or the JSON of ComfyUI, SwarmUI, InvokeAI or Fooocus.

    Raises UserError when it is longer than 2 MB.
    """
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise UserError("text_too_large", high=MAX_TEXT_BYTES // 2**20)
    if not text.strip():
        return Inspection()
    return inspect_texts({INFOTEXT_KEY: text})


def inspect_texts(texts: dict[str, str]) -> Inspection:
    """Find the dialect of the texts of one picture, by the key that a PNG gives them."""
    rest = dict(texts)
    found = Findings()
    dialect = ""
    for read in (_own, _invokeai, _parameters_json, _graph, _infotext):
        result = read(rest, found)
        if isinstance(result, Inspection):
            return result
        if result:
            dialect = result
            break
    for key, text in rest.items():
        found.leave(key, text)
    return found.inspection(dialect)


def _own(texts: dict[str, str], found: Findings) -> Inspection | None:
    """Our own recipe, in its own chunk or pasted."""
    for key in (OWN_KEY, INFOTEXT_KEY):
        text = texts.get(key, "")
        if not text or (key == INFOTEXT_KEY and not _looks_own(text)):
            continue
        try:
            recipe = Recipe.from_json(text)
        except (ValueError, TypeError) as error:
            found.note(key, text, None, "meta.bad_json", why=str(error))
            continue
        for other in (key, INFOTEXT_KEY):
            texts.pop(other, None)
        for other, value in texts.items():
            found.leave(other, value)
        return Inspection(OWN_KEY, recipe.to_dict(), unknown=found.inspection(OWN_KEY).unknown)
    return None


def _looks_own(text: str) -> bool:
    if not all(f'"{name}"' in text for name in _OWN_FIELDS):
        return False
    data = _object(text)
    return data is not None and data.keys() >= _OWN_FIELDS


def _invokeai(texts: dict[str, str], found: Findings) -> str:
    data = _parsed(_INVOKE_KEY, texts, found)
    if isinstance(data, dict) and read_invokeai(data, found):
        del texts[_INVOKE_KEY]
        return "invokeai"
    return ""


def _parameters_json(texts: dict[str, str], found: Findings) -> str:
    """JSON where A1111 keeps its infotext, or pasted."""
    if not texts.get(INFOTEXT_KEY, "").lstrip().startswith("{"):
        return ""
    data = _parsed(INFOTEXT_KEY, texts, found)
    if not isinstance(data, dict):
        return ""
    scheme = texts.get(_SCHEME_KEY, "")
    dialects: dict[str, Callable[[], bool]] = {
        "swarmui": lambda: read_swarmui(data, found),
        "fooocus": lambda: read_fooocus(data, found, scheme=scheme),
        "invokeai": lambda: read_invokeai(data, found),
        "comfyui": lambda: _pasted_graph(data, found),
    }
    for dialect, read in dialects.items():
        if read():
            del texts[INFOTEXT_KEY]
            if dialect == "fooocus":
                texts.pop(_SCHEME_KEY, None)
            return dialect
    return ""


def _pasted_graph(data: dict[str, object], found: Findings) -> bool:
    """A graph as it stands, or under `prompt` as it is sent to ComfyUI's server, there also as text."""
    inner = data.get(_GRAPH_KEY)
    if isinstance(inner, str):
        inner = _object(inner)
    if isinstance(inner, dict) and comfyui.is_graph(inner):
        comfyui.read_graph(inner, found)
        for key, value in data.items():
            if key != _GRAPH_KEY:
                found.leave(key, value)
        return True
    if comfyui.is_graph(data):
        comfyui.read_graph(data, found)
        return True
    if isinstance(data.get("nodes"), list) and isinstance(data.get("links"), list):
        found.note(_EDITOR_KEY, None, None, "meta.workflow_only")
        found.leave(_EDITOR_KEY, data)
        return True
    return False


def _graph(texts: dict[str, str], found: Findings) -> str:
    data = _parsed(_GRAPH_KEY, texts, found)
    if isinstance(data, dict) and comfyui.is_graph(data):
        del texts[_GRAPH_KEY]
        comfyui.read_graph(data, found)
        return "comfyui"
    if _GRAPH_KEY not in texts and texts.get(_EDITOR_KEY, "").lstrip().startswith("{"):
        found.note(_EDITOR_KEY, None, None, "meta.workflow_only")
        return "" if INFOTEXT_KEY in texts else "comfyui"
    return ""


def _infotext(texts: dict[str, str], found: Findings) -> str:
    """A1111 and its kin; Fooocus' a1111 scheme keeps the prompt before its styles as `Raw prompt`."""
    for key in (INFOTEXT_KEY, "comment", "ImageDescription"):
        text = texts.get(key, "")
        if texts.get(_SCHEME_KEY) == "a1111" and key == INFOTEXT_KEY:
            if _fooocus_infotext(text, found):
                del texts[key], texts[_SCHEME_KEY]
                return "fooocus"
        elif text and read_infotext(text, found):
            del texts[key]
            return "a1111"
    return ""


def _fooocus_infotext(text: str, found: Findings) -> bool:
    prompt, negative, pairs = parse_infotext(text)
    if not pairs:
        return False
    raw, raw_negative = pairs.pop("Raw prompt", prompt), pairs.pop("Raw negative prompt", negative)
    take_texts(found, raw, raw_negative)
    for key, styled, own in (("full prompt", prompt, raw), ("full negative prompt", negative, raw_negative)):
        if styled != own:
            found.leave(key, styled)
    take_pairs(found, pairs, noise_known=False)
    return True


def _parsed(key: str, texts: dict[str, str], found: Findings) -> object:
    """The JSON under `key`; when it is none, the reason is noted and the text stays among the unknown."""
    if key not in texts:
        return None
    try:
        return loads_strict(texts[key], keep_nan=True)
    except ValueError as error:
        found.note(key, texts[key], None, "meta.bad_json", why=str(error))
        return None


def _object(text: str) -> dict[str, object] | None:
    if not re.match(r"\s{0,100}\{", text):
        return None
    try:
        data = loads_strict(text, keep_nan=True)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
