"""Widget values in, values for the services out, and the way back. Plain functions: no Gradio here.

Nothing is checked or rounded on the way: records.request does that once, for every door.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from zimage_studio.core.metadata.inspect import Inspection
from zimage_studio.errors import InvalidInputError
from zimage_studio.messages import Lang
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.request import ModelDefaults
from zimage_studio.records.verdict import Verdict
from zimage_studio.services.images import StoredImage

FIELDS = ("prompt", "negative_prompt", "width", "height", "steps", "guidance", "seed", "count", "variety")
EXAMPLE_COUNT = 4
_EXAMPLES: Mapping[Lang, tuple[str, ...]] = {
    "en": (
        "a red fox asleep under a birch tree, morning fog",
        "a bowl of ramen on a wooden table, soft window light",
        "a lighthouse on a cliff, watercolour",
        "portrait of an old fisherman, black and white",
    ),
    "zh": (
        "晨雾中，一只赤狐睡在白桦树下",
        "木桌上的一碗拉面，窗边柔光",
        "悬崖上的灯塔，水彩画",
        "老渔夫的肖像，黑白照片",
    ),
}
_RESOLUTION = re.compile(r"\s*(\d{1,6})\s*[x×*]\s*(\d{1,6})\s*(\(.*\))?\s*", re.IGNORECASE)


def to_values(*widgets: object) -> dict[str, object]:
    """The widgets of FIELDS, in that order, as the values of a request; an empty number means the model's own."""
    values = dict(zip(FIELDS, widgets, strict=True))
    texts = ("prompt", "negative_prompt")
    return {name: None if value == "" and name not in texts else value for name, value in values.items()}


def from_recipe(recipe: Recipe) -> dict[str, object]:
    """What the widgets of FIELDS show to make this image again. The seed is text: JavaScript rounds above 2^53."""
    request = recipe.request
    values = {name: getattr(request, name) for name in FIELDS if name not in ("seed", "count")}
    return {**values, "seed": str(request.seed), "count": 1}


def left_out(recipe: Recipe) -> tuple[str, ...]:
    """The fields of an image that `from_recipe` has no widgets for, where they say something."""
    request = recipe.request
    return tuple(name for name in ("variations", "source") if getattr(request, name))


def text_or_refuse(field: str, value: object) -> str:
    """`value` when it is text. Raises InvalidInputError."""
    if not isinstance(value, str):
        raise InvalidInputError("bad_text", field=field, value=repr(value))
    return value


def size_key(width: object, height: object) -> str:
    """How a size is called among the presets."""
    return f"{width}×{height}"


def size_choices(defaults: ModelDefaults) -> list[str]:
    """The presets of a model."""
    return [size_key(width, height) for width, height in defaults.sizes]


def parse_resolution(value: object) -> tuple[int, int]:
    """`1024x1024 ( 1:1 )` as the official Space writes it. Raises InvalidInputError."""
    match = _RESOLUTION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidInputError("bad_size", field="size", value=repr(value))
    return int(match[1]), int(match[2])


def examples(artifact: ModelArtifact | None, lang: Lang) -> tuple[str, ...]:
    """Prompts to try: those that came with the model (`examples.json` in or beside its folder), else general ones."""
    own = _own_examples(Path(artifact.path), lang) if artifact is not None and artifact.kind == "folder" else ()
    return tuple((*own, *_EXAMPLES[lang])[:EXAMPLE_COUNT])


def _own_examples(folder: Path, lang: Lang) -> tuple[str, ...]:
    for path in (folder / "examples.json", folder.parent / "examples.json"):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        prompts = data.get(lang) if isinstance(data, dict) else None
        return tuple(p for p in prompts if isinstance(p, str) and p) if isinstance(prompts, list) else ()
    return ()


def history_entry(stored: StoredImage) -> dict[str, object]:
    """One image as the API lists it; the seed is text."""
    recipe = stored.recipe
    request = {**recipe.request.to_dict(), "seed": str(recipe.request.seed)}
    return {
        "id": stored.id,
        "created": recipe.created,
        **request,
        "model": recipe.model.key,
        "pixels_sha256": recipe.outcome.pixels_sha256,
        "seconds": recipe.outcome.seconds,
    }


def result_entry(stored: StoredImage) -> dict[str, object]:
    """One image as `/generate_image` answers it. The recipe is whole; its seed above 2^53 is safe in `seed`."""
    recipe = stored.recipe
    return {
        "id": stored.id,
        "seed": str(recipe.request.seed),
        "pixels_sha256": recipe.outcome.pixels_sha256,
        "seconds": recipe.outcome.seconds,
        "recipe": recipe.to_dict(),
    }


def inspection_entry(found: Inspection, lang: Lang) -> dict[str, object]:
    """What a picture or a text says, as `/inspect` answers it; `seed` is its seed as text."""
    recipe = found.recipe or {}
    request = recipe.get("request", recipe)
    seed = request.get("seed") if isinstance(request, Mapping) else None
    return {**found.to_dict(lang), "seed": None if seed is None else str(seed)}


def verdict_entry(verdict: Verdict, lang: Lang) -> dict[str, object]:
    """A verdict as `/replay` answers it: seeds as text, and no path, which clients would take for a file."""
    data = verdict.to_dict(lang)
    del data["path"]
    differences = [asdict(difference) for difference in verdict.differences]
    for difference in differences:
        if str(difference["field"]).endswith("seed"):
            difference |= {"then": str(difference["then"]), "now": str(difference["now"])}
    return {**data, "differences": differences}


def overrides_or_refuse(value: object) -> dict[str, object]:
    """Fields of a request that replace recorded ones, or none. Raises InvalidInputError on anything but an object."""
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError("bad_overrides", field="overrides", value=repr(value))
    return value
