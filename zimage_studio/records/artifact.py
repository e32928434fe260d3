"""A model as Studio knows it before any weight is read: where it lies, what it is, which hash."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from zimage_studio.records.request import ModelDefaults

Kind = Literal["folder", "hub", "single_file", "gguf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArtifact:
    """One model in the list.

    `sha256` is the hash over the sorted list of (relative name, sha256) of its weight and config files; None
    until it has been computed, or when the model is not on this machine yet. `parameters` and `bytes` are read
    from the safetensors headers (GGUF: from its own header) and count all components; None when unknown.
    `missing` says in a message key why it cannot be loaded now, or is empty.
    """

    key: str
    kind: Kind
    path: str
    name: str
    family: Literal["turbo", "base", "other"] = "other"
    sha256: str | None = None
    parent: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    missing: str = ""

    def public(self) -> dict[str, object]:
        """What the API and the command line print."""
        return asdict(self)
