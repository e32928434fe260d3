"""What holds for every answer about every file, however hostile."""

import json

from zimage_studio.core.metadata.findings import MAX_KEY_CHARS, MAX_LISTED, MAX_SHOWN_CHARS, Inspection
from zimage_studio.core.metadata.png import OWN_KEY
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.request import ModelDefaults, parse_batch

PLAIN = (type(None), bool, int, float, str)
MAX_ANSWER_BYTES = 4 * 2**20


def assert_sound(found: Inspection) -> None:
    """It can be sent in both languages, it is short, and what it took over is accepted by the door of a request."""
    for lang in ("en", "zh"):
        answer = json.dumps(found.to_dict(lang), ensure_ascii=False, allow_nan=False).encode()
        assert len(answer) <= MAX_ANSWER_BYTES
    assert len(found.converted) <= MAX_LISTED
    assert len(found.unknown) <= MAX_LISTED + 1
    for key, text in found.unknown.items():
        assert len(key) <= MAX_KEY_CHARS
        assert type(text) is str
        assert len(text) <= MAX_SHOWN_CHARS
    for conversion in found.converted:
        values = (conversion.source, conversion.value, *conversion.details.values())
        assert all(isinstance(value, PLAIN) and len(str(value)) <= MAX_SHOWN_CHARS for value in values)
    if found.dialect == OWN_KEY:
        assert Recipe.from_json(json.dumps(found.recipe)).to_dict() == found.recipe
    elif found.recipe is not None:
        fields = {name: value for name, value in found.recipe.items() if name != "model"}
        if not str(fields.get("prompt", "")).strip():
            fields["prompt"] = "a"
        parse_batch(fields, ModelDefaults())
