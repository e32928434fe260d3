"""The recipe: everything that decided the pixels of one image, and what came out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.request import STRICT, GenerationRequest
from zimage_studio.records.versioned import WrongSchemaError, read_versioned

SCHEMA = 1
MAX_JSON_CHARS = 2**18
"""A hundred times what a recipe needs: every wrong value in it costs a thousand bytes of complaint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Which weights: `sha256` decides, key and name are for people; `parent` is the hash it was made from."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    pixels_sha256: str
    latents_sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A recipe makes its image again. Written into the PNG and beside it in the database.

    `stack` maps library to version (studio, torch, diffusers, transformers, python, platform), `cpu` to its vector
    instructions and `threads` to how many torch used.
    `index` is the place in its batch. `parent` is the pixel hash of the image this one was made from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
        """Read what `to_json` wrote. Raises ValueError on another schema, unknown keys, wrong values, length."""
        if len(source) > MAX_JSON_CHARS:
            raise ValueError(f"The recipe has {len(source)} characters; at most {MAX_JSON_CHARS} are read.")
        try:
            return read_versioned(cls, source, SCHEMA)
        except WrongSchemaError as error:
            raise ValueError(f"The recipe has schema {error.found!r}; this version reads {SCHEMA}.") from error
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"The recipe cannot be read: {error}") from error
