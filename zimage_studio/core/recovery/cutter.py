"""What progressive recovery cuts with: ratios become plans by a criterion, ids are looked up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zimage_studio.core.fingerprint import fingerprint
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.pruning.artifact import write_pruned
from zimage_studio.core.pruning.planning import make_plan
from zimage_studio.core.pruning.ranking import Ranking
from zimage_studio.core.pruning.shape import transformer_shape
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import PrunePlan
from zimage_studio.records.progress import Progress, silent
from zimage_studio.records.recover import RecoveryConfig

Rank = Callable[[Path, PruneRequest], Ranking]
"""Scores of the model in a folder, as the request asks for them."""


@dataclass(frozen=True, slots=True)
class PlannedCutter:
    """`plans` by id; a plan must fit the shape of the model that is there when its turn comes."""

    config: RecoveryConfig
    rank: Rank
    plans: Mapping[str, PrunePlan]
    progress: Progress = silent

    def plan(self, folder: Path, cut: float | str) -> PrunePlan:
        """Raises InvalidInputError for an id that is not known or a plan for another shape."""
        if isinstance(cut, str):
            return self._known(folder, cut)
        facts = inspect_folder(folder)
        artifact = ModelArtifact(
            key=folder.name, kind="folder", path=str(folder), name=folder.name, sha256=fingerprint(facts.files),
            parameters=facts.parameters, bytes=facts.bytes, defaults=facts.defaults,
        )  # fmt: skip
        request = PruneRequest(
            model=folder.name, kinds=self.config.cut_kinds, criterion=self.config.cut_criterion, ratio=cut,
            seed=self.config.seed % 2**32,
        )  # fmt: skip
        return make_plan(request, artifact, folder, self.rank(folder, request), self.progress)

    def prune(self, folder: Path, plan: PrunePlan, out: Path) -> None:
        """The weights may have been trained since the plan was made; its shape decides whether it fits."""
        here = fingerprint(inspect_folder(folder).files)
        write_pruned(folder, out, replace(plan, model_sha256=here), progress=self.progress)

    def _known(self, folder: Path, name: str) -> PrunePlan:
        plan = self.plans.get(name)
        if plan is None:
            raise InvalidInputError("recover_unknown_plan", field="cuts", value=name)
        if plan.before != transformer_shape(folder):
            raise InvalidInputError("recover_plan_shape", field="cuts", value=name)
        return plan
