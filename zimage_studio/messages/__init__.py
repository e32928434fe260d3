"""Sentences that any door may say (errors, notes, states), in English and Chinese."""

from typing import Literal, get_args

from zimage_studio.messages.en import EN
from zimage_studio.messages.zh import ZH

Lang = Literal["en", "zh"]
LANGS: tuple[Lang, ...] = get_args(Lang)
CATALOGUES: dict[Lang, dict[str, str]] = {"en": EN, "zh": ZH}

MAX_SHOWN_CHARS = 200


def say(key: str, lang: Lang, **values: object) -> str:
    """The sentence `key` in `lang` with `values` filled in.

    A value is shown shortened to 200 characters and without control or bidirectional characters,
    so that hostile input cannot flood or reorder a message. A value that is itself a key with the
    prefix `field.` is translated (names of fields). A tuple is written as a list.
    """
    catalogue = CATALOGUES[lang]
    shown = {name: _shown(value, catalogue) for name, value in values.items()}
    return catalogue[key].format(**shown)


def _shown(value: object, catalogue: dict[str, str]) -> str:
    if isinstance(value, tuple):
        return catalogue["list_comma"].join(_shown(item, catalogue) for item in value)
    field = catalogue.get(f"field.{value}") if isinstance(value, str) else None
    text = (field or str(value))[: MAX_SHOWN_CHARS + 1]
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= MAX_SHOWN_CHARS else clean[: MAX_SHOWN_CHARS - 1] + "…"
