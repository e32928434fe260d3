"""The recipe: everything that decided the pixels of one image, and what came out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from zimage_studio.records.request import GenerationRequest

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Which weights: `sha256` decides, key and name are for people; `parent` is the hash it was made from."""

    key: str
    name: str
    sha256: str
    parent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """How the arithmetic was done, and what else changes pixels.

    `dtypes` maps component to dtype name; `device` is a name such as `cpu` or `NVIDIA H200`; `memory` lists
    the switches that change numbers (empty: none); `noise` says where the start noise was drawn.
    """

    device: str
    dtypes: Mapping[str, str]
    attention_backend: str
    memory: Mapping[str, object]
    scheduler: Mapping[str, object]
    sigmas: tuple[float, ...]
    sequence_length: int
    noise: str = "cpu float32, one generator per image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came out: sha256 of the RGB bytes and of the final latent (float32), and the time it took."""

    pixels_sha256: str
    latents_sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A recipe makes its image again. Written into the PNG and beside it in the database.

    `stack` maps library to version (studio, torch, diffusers, transformers, python, platform).
    `index` is the place in its batch. `parent` is the pixel hash of the image this one was made from.
    """

    request: GenerationRequest
    model: ModelIdentity
    numerics: Numerics
    stack: Mapping[str, str]
    outcome: Outcome
    created: str
    job: str
    index: int = 0
    parent: str | None = None

    def to_dict(self) -> dict[str, object]:
        """All fields and the schema number, as JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """One line of JSON; NaN is refused, non-ASCII is kept."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError on another schema, unknown keys or wrong values."""
        data = json.loads(source)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"The recipe has schema {data.get('schema') if isinstance(data, dict) else data!r}; this version reads {SCHEMA}.")
        data.pop("schema")
        return cls(
            **_known(cls, data)
            | {
                "request": GenerationRequest(**_known(GenerationRequest, data.get("request"))),
                "model": ModelIdentity(**_known(ModelIdentity, data.get("model"))),
                "numerics": _numerics(data.get("numerics")),
                "outcome": Outcome(**_known(Outcome, data.get("outcome"))),
            }
        )


def _numerics(data: object) -> Numerics:
    known = _known(Numerics, data)
    sigmas = known.get("sigmas")
    if not isinstance(sigmas, list):
        raise ValueError("The recipe's numerics.sigmas is not a list.")
    return Numerics(**known | {"sigmas": tuple(float(s) for s in sigmas)})


def _known(cls: type, data: object) -> dict[str, object]:
    if not isinstance(data, dict):
        raise ValueError(f"The recipe's {cls.__name__} is not an object.")
    names = {f.name for f in fields(cls)}
    if unknown := data.keys() - names:
        raise ValueError(f"The recipe has unknown keys {sorted(unknown)} in {cls.__name__}.")
    return data
