"""What a picture file says about its making, in our own terms: recognised, converted, or listed as unknown."""

from dataclasses import dataclass, field
from pathlib import Path

from zimage_studio.core.metadata.infotext import parse_infotext
from zimage_studio.core.metadata.png import INFOTEXT_KEY, OWN_KEY, loads_strict, read_texts
from zimage_studio.records.recipe import Recipe

MAX_SHOWN_CHARS = 2000
_A1111_FIELDS = {"Steps": "steps", "Seed": "seed"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """One value that means something else here: what stood there, what it is for us, and why."""

    field: str
    source: object
    value: object
    why: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """`recipe` holds what was understood, under the names of our own recipe; `unknown` everything else.

    `dialect` is `zimage_studio`, `a1111` or empty.
    """

    dialect: str = ""
    recipe: dict[str, object] | None = None
    converted: tuple[Conversion, ...] = ()
    unknown: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """As the command line and the API print it."""
        return {
            "dialect": self.dialect or None,
            "recipe": self.recipe,
            "converted": [{"field": c.field, "from": c.source, "to": c.value, "why": c.why} for c in self.converted],
            "unknown": self.unknown,
        }


def inspect_file(path: Path, *, name: str | None = None) -> Inspection:
    """Read the texts of the PNG at `path`; no pixel is decoded, no path or address in them is followed.

    Raises UserError when the file is not a readable PNG.
    """
    texts = read_texts(path, name=name)
    own = texts.pop(OWN_KEY, None)
    if own is not None:
        try:
            loads_strict(own)
            recipe = Recipe.from_json(own)
        except (ValueError, TypeError) as error:
            texts[OWN_KEY] = f"{error}"
        else:
            texts.pop(INFOTEXT_KEY, None)
            return Inspection("zimage_studio", recipe.to_dict(), unknown=_shown(texts))
    prompt, negative, pairs = parse_infotext(texts.get(INFOTEXT_KEY, ""))
    if not pairs:
        return Inspection(unknown=_shown(texts))
    del texts[INFOTEXT_KEY]
    return _from_a1111(prompt, negative, pairs, texts)


def _from_a1111(prompt: str, negative: str, pairs: dict[str, str], rest: dict[str, str]) -> Inspection:
    recipe: dict[str, object] = {"prompt": prompt, "negative_prompt": negative}
    converted: list[Conversion] = []
    unknown = dict(rest)
    for key, value in pairs.items():
        width, _, height = value.partition("x")
        if key in _A1111_FIELDS and value.isdecimal():
            recipe[_A1111_FIELDS[key]] = int(value)
        elif key == "Size" and width.isdecimal() and height.isdecimal():
            recipe |= {"width": int(width), "height": int(height)}
        elif key == "CFG scale" and (guidance := _guidance(value)) is not None:
            recipe["guidance"] = guidance
            why = "CFG scale counts one more than Z-Image's guidance, pos + g (pos - neg)"
            converted.append(Conversion("guidance", value, guidance, why))
        else:
            unknown[key] = value
    return Inspection("a1111", recipe, tuple(converted), _shown(unknown))


def _guidance(value: str) -> float | None:
    try:
        return round(float(value) - 1, 6)
    except ValueError:
        return None


def _shown(texts: dict[str, str]) -> dict[str, str]:
    return {key[:100]: text[:MAX_SHOWN_CHARS] for key, text in texts.items()}
