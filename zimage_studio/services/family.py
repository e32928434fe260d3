"""The family tree of models: who was made from whom, and the report card of each."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zimage_studio.errors import UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.plan import PLAN
from zimage_studio.records.progress import Progress
from zimage_studio.records.report import ReportCard
from zimage_studio.services.models import ModelService

log = logging.getLogger(__name__)

REPORT, CARD = "report", "card.json"
MAX_CARD_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class FamilyMember:
    """A model in the tree. `depth` counts generations from 0; `parent` is the parent's key, empty where it is not here.

    `card` is its report card, None before it was evaluated; `cut` says that a plan lies with it.
    """

    artifact: ModelArtifact
    parent: str
    depth: int
    cut: bool
    card: ReportCard | None

    @property
    def key(self) -> str:
        """Its key in the list of models."""
        return self.artifact.key


def report_place(data: Path, artifact: ModelArtifact) -> Path:
    """Where the report card of a model lies: beside a model of our own, below DATA/reports for all others.

    Models that are not ours (the embedded one, the hub's, a person's folders) are never written to.
    """
    path = Path(artifact.path)
    if artifact.kind == "folder" and path.is_relative_to(data / "models"):
        return path / REPORT
    return data / "reports" / artifact.key / REPORT


def root_of(models: ModelService, artifact: ModelArtifact, progress: Progress) -> ModelArtifact:
    """The uncut model that `artifact` goes back to, through all cuts and trainings, with its hash.

    Raises UserError: no_parent when it names none, parent_missing when one on the way is not on this machine.
    """
    if artifact.parent is None:
        raise UserError("no_parent", value=artifact.name)
    while artifact.parent is not None:
        artifact = _with_hash(models, artifact, artifact.parent, progress)
    return artifact


def _with_hash(models: ModelService, child: ModelArtifact, sha256: str, progress: Progress) -> ModelArtifact:
    """The model with this hash: first among those whose hash is known, then among all that are here."""
    here = [artifact for artifact in models.list() if not artifact.missing]
    for artifact in here:
        known = models.with_known_hash(artifact)
        if known.sha256 == sha256:
            return known
    for artifact in here:
        if artifact.kind == "folder" or artifact.key == child.key:
            hashed = models.identity(artifact, progress)
            if hashed.sha256 == sha256:
                return hashed
    raise UserError("parent_missing", value=child.name, sha256=sha256[:12])


def family_of(data: Path, models: ModelService) -> tuple[FamilyMember, ...]:
    """All models that are here, every parent before its children, siblings in the order of the list."""
    known = [models.with_known_hash(artifact) for artifact in models.list() if not artifact.missing]
    by_hash = {artifact.sha256: artifact for artifact in reversed(known) if artifact.sha256}
    parents = {artifact.key: by_hash.get(artifact.parent) for artifact in known if artifact.parent}
    members: list[FamilyMember] = []

    def add(artifact: ModelArtifact, parent: str, depth: int) -> None:
        cut = (Path(artifact.path) / PLAN).is_file()
        members.append(FamilyMember(artifact, parent, depth, cut, card_of(data, artifact)))
        for child in _children(artifact, known, parents):
            if all(child.key != member.key for member in members):
                add(child, artifact.key, depth + 1)

    for artifact in known:
        if parents.get(artifact.key) is None:
            add(artifact, "", 0)
    return tuple(members)


def card_of(data: Path, artifact: ModelArtifact) -> ReportCard | None:
    """The report card of a model; None where there is none that can be read."""
    path = report_place(data, artifact) / CARD
    if not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return None
    try:
        return ReportCard.from_json(path.read_text(encoding="utf-8"))
    except (UserError, OSError, UnicodeDecodeError) as error:
        log.warning("the report card of %s cannot be read: %s", artifact.name, error)
        return None


def _children(
    parent: ModelArtifact, known: Sequence[ModelArtifact], parents: dict[str, ModelArtifact | None]
) -> list[ModelArtifact]:
    return [a for a in known if (found := parents.get(a.key)) is not None and found.key == parent.key]
