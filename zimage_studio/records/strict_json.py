"""JSON from strangers: no duplicate keys, no NaN or infinity, no depth or number of values that breaks its reader."""

import json
import math

MAX_DEPTH = 100
MAX_VALUES = 200_000
"""An empty list is two characters of text and sixty bytes of memory."""


def loads_strict(text: str, *, keep_nan: bool = False) -> object:
    """The value of `text`. Raises ValueError on NaN, infinity, duplicate keys, over 100 levels or 200,000 values.

    The values are counted before anything is built, by the marks that stand between them; those inside texts count too.

    With `keep_nan`, numbers that JSON does not know become texts ("NaN"): ComfyUI writes them into good files.
    """

    def constant(word: str) -> object:
        if keep_nan:
            return word
        raise ValueError(f"{word} is not JSON")

    def number(digits: str) -> object:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits[:20])

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a key stands twice")
        return keys

    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")
    try:
        value: object = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    """Level by level instead of by recursion, which is what deep nesting breaks."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    if any(isinstance(value, dict | list) for value in level):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
