"""Turn what a widget, a JSON client or a command line sent into a number or a text, or refuse it by name.

Every refusal names the field, the value received, the bound and the remedy. Nothing is rounded, clamped or
guessed: `"8"` is accepted as 8 (command lines and forms send text), `8.5`, `True`, NaN and `[8]` are not.
"""

import math
import re
from collections.abc import Iterable
from difflib import get_close_matches

from zimage_studio.errors import InvalidInputError

FEW, NEAREST = 8, 4
"""So many known fields are all named in a refusal; of more only those that are written most alike."""
_WHOLE = re.compile(r"[+-]?\d{1,30}")


def whole(field: str, value: object, low: int, high: int) -> int:
    """A whole number within [low, high]."""
    number = _as_int(value)
    if number is None:
        raise InvalidInputError("bad_whole", field=field, value=_name(value), low=low, high=high)
    if not low <= number <= high:
        raise InvalidInputError("out_of_range", field=field, value=number, low=low, high=high)
    return number


def real(field: str, value: object, low: float, high: float) -> float:
    """A finite number within [low, high]."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InvalidInputError("bad_number", field=field, value=_name(value), low=low, high=high) from None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (isinstance(value, float) and math.isnan(value))
    ):
        raise InvalidInputError("bad_number", field=field, value=_name(value), low=low, high=high)
    if not low <= value <= high:
        raise InvalidInputError("out_of_range", field=field, value=value, low=_plain(low), high=_plain(high))
    return float(value)


def text(field: str, value: object, max_chars: int) -> str:
    """A text of at most `max_chars` characters that can be written to any file (no lone surrogates, no NUL)."""
    if not isinstance(value, str):
        raise InvalidInputError("bad_text", field=field, value=_name(value))
    if len(value) > max_chars:
        raise InvalidInputError("too_long", field=field, count=len(value), high=max_chars)
    for position, char in enumerate(value):
        if 0xD800 <= ord(char) <= 0xDFFF or char == "\0":
            raise InvalidInputError("bad_character", field=field, code=f"U+{ord(char):04X}", position=position + 1)
    return value


def flag(field: str, value: object) -> bool:
    """True or false, and nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise InvalidInputError("bad_flag", field=field, value=_name(value))
    return value


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InvalidInputError when a name of `given` is not `known`, with the names that were perhaps meant."""
    names = list(known)
    unknown = set(given) - set(names)
    if not unknown:
        return
    field = min(unknown)
    if len(names) <= FEW:
        raise InvalidInputError("unknown_field", field=field, known=", ".join(names))
    near = ", ".join(get_close_matches(field, names, NEAREST, cutoff=0.0))
    raise InvalidInputError("unknown_field_of_many", field=field, known=near, count=len(names))


def _as_int(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    return None


def _name(value: object) -> str:
    """How a refused value is called in a sentence."""
    if value is None or value == "":
        return "empty"
    return repr(value)


def _plain(number: float) -> str:
    return f"{number:g}"
