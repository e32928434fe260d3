"""The models of an evaluation: what they are on disk, before anything is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zimage_studio.core.fingerprint import HashCache, fingerprint, manifest_of
from zimage_studio.core.model_files import Facts, inspect
from zimage_studio.core.pruning.shape import flops, image_tokens, transformer_shape
from zimage_studio.errors import ModelError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Progress
from zimage_studio.records.report import Subject


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model with its facts. `artifact` is what the engine loads."""

    artifact: ModelArtifact
    facts: Facts

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.artifact.path)

    @property
    def subject(self) -> Subject:
        """As the card names it."""
        transformer = self.facts.components["transformer"]
        return Subject(
            name=self.artifact.name,
            sha256=self.artifact.sha256 or "",
            parameters=self.facts.parameters,
            bytes=self.facts.bytes,
            transformer_parameters=transformer.parameters,
            transformer_bytes=transformer.bytes,
        )

    def flops(self, width: int, height: int, caption_tokens: int) -> int | None:
        """Of one forward of the transformer; None where its shape cannot be read (single files)."""
        try:
            shape = transformer_shape(self.path)
        except ModelError:
            return None
        return flops(shape, image_tokens(self.path, width, height), caption_tokens)


def entrant(path: Path, name: str, hashes: HashCache | None, progress: Progress) -> Entrant:
    """Read the headers and the hash of the model at `path`. Raises ModelError with what is wrong."""
    facts = inspect(str(path))
    manifest: Mapping[str, str] | None = manifest_of(facts.root) if facts.kind == "folder" else None
    artifact = ModelArtifact(
        key=name or path.name, kind=facts.kind, path=str(path), name=name or path.name, family=facts.family,
        parent=facts.parent, parameters=facts.parameters, bytes=facts.bytes, defaults=facts.defaults,
    )  # fmt: skip
    sha256 = fingerprint(facts.files, cache=hashes, manifest=manifest, progress=progress)
    return Entrant(replace(artifact, sha256=sha256), facts)
