"""Records read from JSON that anybody may have edited: the right schema, known keys only, every type as declared."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from zimage_studio.records.strict_json import loads_strict

MAX_COMPLAINTS = 5
RecordT = TypeVar("RecordT")
Data = dict[str, Any]


class WrongSchemaError(ValueError):
    """`found` stands where the number of the schema should."""

    def __init__(self, found: object, known: int) -> None:
        self.found = found
        super().__init__(f"schema {found!r} ≠ {known}")


def read_versioned(
    cls: type[RecordT], source: str, schema: int, *, max_chars: int | None = None, mend: Callable[[Data], Data] = dict
) -> RecordT:
    """The record of a JSON object that holds its fields and `schema`. `mend` turns older data of one schema into new.

    Raises WrongSchemaError, and ValueError for text that is too long, is no JSON object, or does not fit the fields,
    with the first complaints; whatever the record raises itself when it is built passes through.
    """
    if max_chars is not None and len(source) > max_chars:
        raise ValueError(f"{len(source)} characters > {max_chars}")
    data = loads_strict(source)
    found = data.pop("schema", None) if isinstance(data, dict) else None
    if not isinstance(data, dict) or type(found) is not int or found != schema:
        raise WrongSchemaError(found, schema)
    try:
        record: RecordT = TypeAdapter(cls).validate_json(json.dumps(mend(data)))
    except ValidationError as error:
        raise ValueError(_short(error)) from error
    return record


def _short(error: ValidationError) -> str:
    """The first few complaints, each with the place of its value; what is only missing comes last."""
    complaints = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
    return "; ".join(sorted(complaints, key=lambda complaint: "required" in complaint)[:MAX_COMPLAINTS])
