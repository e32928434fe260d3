"""Compression behind the doors: what is asked is checked here and becomes a job; plans, cards and the family tree."""

import errno
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from zimage_studio.core.pruning.planning import edited
from zimage_studio.core.pruning.scores import Scores
from zimage_studio.core.pruning.shape import transformer_shape
from zimage_studio.core.whole_folder import sweep
from zimage_studio.errors import InvalidInputError, ModelError, UserError
from zimage_studio.messages import Lang, say
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.checks import flag
from zimage_studio.records.compress import artifact_name, parse_prune
from zimage_studio.records.job import JobRecord
from zimage_studio.records.memory import MemoryProfile
from zimage_studio.records.plan import PLAN, BlockEdit, PrunePlan, TransformerShape
from zimage_studio.records.recover import DRAWN, RecoveryConfig, parse_recovery, processes_on
from zimage_studio.records.report import EvaluationRequest, ReportCard
from zimage_studio.records.request import parse_batch
from zimage_studio.records.sensitivity import SensitivityMap, parse_knocks
from zimage_studio.records.sensitivity_request import SensitivityRequest
from zimage_studio.services.family import FamilyMember, card_of, family_of, report_place
from zimage_studio.services.jobs import JobService
from zimage_studio.services.knockouts import KnockOutJob, start_knock_out
from zimage_studio.services.manager import PipelineManager
from zimage_studio.services.memory import MemoryService
from zimage_studio.services.models import ModelService
from zimage_studio.services.plans import PlanStore, StoredPlan, default_name, free_name, read_plan, readable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage_studio.core.pruning.lora import Carried

log = logging.getLogger(__name__)

WEIGHT_ONLY = frozenset({"random", "l1", "group_l2"})
MAP, DATA_SETS = "map.json", "datasets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CHECKPOINTS = 4
"""A training keeps weights, their average and two moments, in float32 at the most."""


class CompressionService:
    """Turns what the doors ask into jobs (services.jobs), and reads what the jobs left.

    `plan`, `prune`, `recover`, `evaluate` and `sensitivity` check everything that can be checked without reading a
    weight, queue a job and return its record at once; `jobs.get(id).result` holds what came out (see
    services.compression_work for its keys). All methods may be called from any thread. Models are named by their key;
    `allow_paths` also lets a path through, for the command line.
    """

    def __init__(
        self, *, data: Path, models: ModelService, jobs: JobService, manager: PipelineManager, memory: MemoryService
    ) -> None:
        self._data = data
        self._models = models
        self.jobs = jobs
        self._manager = manager
        self._memory = memory
        self._plans = PlanStore(data / "plans")
        sweep(data / "models")

    # --- jobs

    def plan(
        self, values: Mapping[str, object], *, save_as: str = "", overwrite: bool = False, allow_paths: bool = False
    ) -> JobRecord:
        """Queue the making of a plan. `values` are the fields of PruneRequest, as a door received them.

        The plan is kept as `save_as`, or under a readable name of its own; result: StoredPlan.public().
        Raises InvalidInputError, UserError (unknown model, plan_taken unless it may `overwrite`), ModelError (no plain
        folder), BusyError, StorageError.
        """
        request = parse_prune(values)
        artifact = self._folder_model(request.model, allow_paths)
        if save_as:
            self._refuse_taken(save_as, overwrite)
        body = {
            **self._about(artifact),
            "request": {**asdict(request), "model": artifact.key},
            "save_as": save_as,
            "overwrite": overwrite,
        }
        return self.jobs.submit("plan", body, device=request.criterion not in WEIGHT_ONLY)

    def prune(self, plan: str | Path | PrunePlan, name: str = "", *, allow_paths: bool = False) -> JobRecord:
        """Queue the cut that a plan says: its name in the list, its file, or the plan itself.

        The model is written to DATA/models/`name`; result: {"model", "path", "parameters", "bytes",
        "peak_memory_bytes", "seconds"}. Raises what `plan` does, and name_taken, unknown_plan, plan_other_model.
        """
        found = self._plan_of(plan, allow_paths)
        artifact = self._folder_model(found.model, allow_paths=False)
        known = self._models.with_known_hash(artifact).sha256
        if known is not None and known != found.model_sha256:
            artifact = self._with_hash(found)
        chosen = self._new_name(name, default_name(found, artifact.key))
        body = {**self._about(artifact), "plan": json.loads(found.to_json()), "name": chosen}
        return self.jobs.submit("prune", body, needs_bytes=found.bytes_after, device=False)

    def recover(
        self, model: str, values: Mapping[str, object], name: str = "", *, allow_paths: bool = False
    ) -> JobRecord:
        """Queue the training of `model` (a cut one). `values` are fields of RecoveryConfig.

        `teacher` is a key, empty for the uncut parent. The result is a new model `name`: {"model", "path", "steps",
        "loss_first", "loss_last", "seconds"}. What can be watched lies in the job's folder (see `jobs.folder`).

        Raises InvalidInputError (also for more processes than accelerators), UserError (no_parent).
        """
        config = parse_recovery(values)
        self._refuse_processes(config)
        artifact = self._folder_model(model, allow_paths)
        config = replace(config, data_set=self._data_set(config.data_set, allow_paths))
        teacher = self._folder_model(config.teacher, allow_paths) if config.teacher else None
        if teacher is None and config.uses_teacher and artifact.parent is None:
            raise UserError("no_parent", value=artifact.name)
        chosen = self._new_name(name, readable(f"{artifact.key}-recovered"))
        body = {
            **self._about(artifact),
            "config": config.to_dict(),
            "teacher": "" if teacher is None else teacher.path,
            "name": chosen,
        }
        return self.jobs.submit("recover", body, needs_bytes=CHECKPOINTS * (artifact.bytes or 0))

    def evaluate(
        self, model: str, values: Mapping[str, object], against: str = "", *, allow_paths: bool = False
    ) -> JobRecord:
        """Queue the report card of `model`. `values` are fields of EvaluationRequest.

        Without `against` (a key) it is compared with the uncut model at the root of its family. The card is written
        beside the model in `report/`; result: {"card", "metrics", "not_measured"}.
        """
        request = EvaluationRequest.from_dict(values)
        if not allow_paths:
            self._refuse_paths(request)
        artifact = self._folder_model(model, allow_paths)
        other = self._folder_model(against, allow_paths) if against else None
        if other is None and artifact.parent is None:
            raise UserError("no_parent", value=artifact.name)
        body = {**self._about(artifact), "request": request.to_dict(), "against": "" if other is None else other.path}
        return self.jobs.submit("evaluate", body)

    def sensitivity(self, model: str, values: Mapping[str, object], *, allow_paths: bool = False) -> JobRecord:
        """Queue the sensitivity map of `model`: what every block, half and head matters.

        `values` are fields of SensitivityRequest; `sensitivity_map` reads what came out.
        """
        request = SensitivityRequest.from_dict(values)
        artifact = self._folder_model(model, allow_paths)
        return self.jobs.submit("sensitivity", {**self._about(artifact), "request": request.to_dict()})

    def resume_recovery(self, model: str, *, allow_paths: bool = False) -> JobRecord:
        """Queue the newest recovery of `model` that did not come to its end again. Raises UserError (job_none)."""
        artifact = self._folder_model(model, allow_paths)
        for job in self.jobs.list():
            if job.kind == "recover" and job.resumable and job.request.get("path") == artifact.path:
                return self.jobs.resume(job.id)
        raise UserError("job_none", value=artifact.name)

    def slowed(self, lang: Lang) -> str:
        """A sentence for the page while a job and the pictures share the processor; empty otherwise."""
        job = self.jobs.running()
        if job is None or self._manager.state.phase == "lent":
            return ""
        return say("job_slows", lang, job=job.kind)

    # --- LoRAs

    def carry_lora(self, lora: Path, model: str, out: Path, *, allow_paths: bool = False) -> "Carried":
        """Write `lora`, made for the parent of the cut `model`, as the new file `out` that fits `model`.

        Raises UserError (lora_no_plan) for a model that was not cut by a plan, ModelError for a LoRA that does not fit
        the parent, StorageError.
        """
        artifact = self._models.get(model, allow_paths=allow_paths)
        path = Path(artifact.path) / PLAN
        if not path.is_file():
            raise UserError("lora_no_plan", value=artifact.name)
        if not lora.is_file():
            raise UserError("file_damaged", value=lora, why=os.strerror(errno.ENOENT))
        from zimage_studio.core.torch_environment import prepare_torch

        prepare_torch()
        from zimage_studio.core.pruning.lora import carry_over

        return carry_over(lora, read_plan(path).plan, out)

    # --- knock-outs, on the live pipeline

    def knock_out(
        self,
        values: Mapping[str, object],
        knocks: Sequence[Mapping[str, object] | str],
        *,
        model: str,
        session: str = "local",
        whole_HWC: "NDArray[np.uint8] | None" = None,
    ) -> KnockOutJob:
        """Draw one picture with and without `knocks`, in the queue of the pictures; see KnockOutView.

        `values` are those of a generation; the knocks are as records.sensitivity.parse_knocks takes them. The pictures
        are not kept and have no recipe. `whole_HWC` is the picture of the whole model from an earlier knock-out with
        the same values and model; it is then not drawn again.
        Raises InvalidInputError, UserError (unknown model, no_knocks), BusyError (lent to a job).
        """
        parsed = parse_knocks(knocks)
        artifact = self._models.get(model)
        batch = parse_batch({**values, "count": 1}, artifact.defaults)
        self._manager.refuse_if_lent()
        job = KnockOutJob(batch.first, parsed, artifact.key, session)
        start_knock_out(job, self._manager, self._profile_of, whole_HWC)
        return job

    def _profile_of(self, model: str) -> MemoryProfile:
        """On the owner thread."""
        return self._memory.settled or self._memory.fit_to(model)

    # --- plans

    def plans(self) -> tuple[StoredPlan, ...]:
        """All plans, newest first."""
        return self._plans.list()

    def get_plan(self, plan_id: object) -> StoredPlan:
        """The plan of that name. Raises UserError (unknown_plan)."""
        return self._plans.get(plan_id)

    def save_plan(self, plan: PrunePlan, plan_id: str = "", *, overwrite: bool = False) -> StoredPlan:
        """Keep a plan, under a free readable name when none is given. Raises UserError (plan_taken)."""
        if plan_id:
            self._refuse_taken(plan_id, overwrite)
        return self._plans.save(plan, plan_id or self._plans.free(default_name(plan, readable(plan.model).lower())))

    def edit_plan(
        self, plan_id: object, edits: Sequence[Mapping[str, object]], *, save_as: str = "", overwrite: bool = False
    ) -> StoredPlan:
        """Set blocks of a plan by hand and keep it as `save_as`, or, without one, in its own place.

        Each edit is a BlockEdit: {"stack", "index"} and any of "kept", "ffn", "heads" (how many stay), "ffn_kept",
        "heads_kept" (which, as text). Raises InvalidInputError (plan_unknown_block, plan_needs_scores, plan_no_layers),
        UserError (plan_taken unless it may `overwrite`).
        """
        stored = self._plans.get(plan_id)
        if save_as:
            self._refuse_taken(save_as, overwrite)
        path = self._plans.scores_of(stored.id)
        scores = Scores.load(path) if path.is_file() else None
        plan = edited(stored.plan, [_edit(values) for values in edits], scores)
        if save_as and save_as != stored.id and scores is not None:
            scores.save(self._plans.scores_of(artifact_name(save_as)))
        return self._plans.save(plan, save_as or stored.id)

    def delete_plan(self, plan_id: object) -> None:
        """Forget a plan. Raises UserError (unknown_plan)."""
        self._plans.delete(plan_id)

    # --- what came out

    def family(self) -> tuple[FamilyMember, ...]:
        """All models as a tree, parents before children, with their report cards. Reads no weight."""
        return family_of(self._data, self._models)

    def data_sets(self) -> tuple[str, ...]:
        """The names of the data sets in DATA/datasets: folders of pictures, or shards of webdataset."""
        folder = self._data / DATA_SETS
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return tuple(name for name in names if not name.startswith("."))

    def shape(self, model: str) -> TransformerShape:
        """Widths and heads of every block, from the headers. Raises UserError (unknown model, not here, no folder)."""
        artifact = self._folder_model(model, allow_paths=False)
        if artifact.missing:
            raise UserError(artifact.missing)
        return transformer_shape(self._models.folder_of(artifact))

    def sensitivity_map(self, job: JobRecord) -> SensitivityMap:
        """What a job of kind `sensitivity` found. Raises UserError (job_no_result) before it is done."""
        path = self.jobs.folder(job.id) / MAP
        if job.state != "done" or not path.is_file():
            raise UserError("job_no_result")
        return SensitivityMap.from_json(path.read_text(encoding="utf-8"))

    def card(self, model: str) -> ReportCard:
        """The report card of a model. Raises UserError (unknown_model, no_card)."""
        artifact = self._models.get(model)
        card = card_of(self._data, artifact)
        if card is None:
            raise UserError("no_card", value=artifact.name)
        return card

    def report_folder(self, model: str) -> Path:
        """Where card.json, card.html, card.md and the pictures of a model lie; it may not exist yet."""
        return report_place(self._data, self._models.get(model))

    # --- checks

    def _about(self, artifact: ModelArtifact) -> dict[str, object]:
        return {"model": artifact.key, "path": artifact.path}

    def _folder_model(self, key: str, allow_paths: bool) -> ModelArtifact:
        """A model that is a whole folder, or a hub model, which is one once it is here. Raises UserError."""
        artifact = self._models.get(key, allow_paths=allow_paths)
        if artifact.kind not in ("folder", "hub"):
            raise ModelError("plan_needs_folder", value=artifact.name)
        if artifact.missing and artifact.missing != "missing.not_downloaded":
            raise UserError(artifact.missing)
        return artifact

    def _with_hash(self, plan: PrunePlan) -> ModelArtifact:
        """Another model of the list that the plan is for. Raises UserError (plan_other_model)."""
        known = [self._models.with_known_hash(artifact) for artifact in self._models.list() if not artifact.missing]
        for artifact in known:
            if artifact.sha256 == plan.model_sha256:
                return artifact
        named = next(artifact for artifact in known if artifact.key == self._models.get(plan.model).key)
        raise UserError(
            "plan_other_model", expected=plan.model, expected_hash=plan.model_sha256[:12],
            value=named.name, hash=(named.sha256 or "")[:12],
        )  # fmt: skip

    def _plan_of(self, plan: str | Path | PrunePlan, allow_paths: bool) -> PrunePlan:
        if isinstance(plan, PrunePlan):
            return plan
        if allow_paths and Path(plan).is_file():
            return read_plan(Path(plan)).plan
        return self._plans.get(str(plan)).plan

    def _new_name(self, name: str, default: str) -> str:
        """A name for a model to be written. Raises InvalidInputError (bad_name), UserError (name_taken)."""
        pending = {str(job.request.get("name", "")) for job in self.jobs.list() if not job.finished}

        def taken(wanted: str) -> bool:
            return wanted in pending or (self._data / "models" / wanted).exists()

        if not name:
            return free_name(default, taken)
        if taken(artifact_name(name)):
            raise UserError("name_taken", value=name)
        return name

    def _refuse_processes(self, config: RecoveryConfig) -> None:
        """Now, and not when the job's turn comes. Only a number of processes can be too large for the machine."""
        if config.processes not in ("auto", 1):
            if self._manager.alive:  # where it is not, as in the command line, nobody else imports torch meanwhile
                self._manager.import_engine()
            from zimage_studio.core.recovery.launch import accelerators

            processes_on(config.processes, accelerators())

    def _refuse_taken(self, plan_id: str, overwrite: object) -> None:
        """Raises InvalidInputError (bad_name), UserError (plan_taken), also for what a job is going to save."""
        if flag("overwrite", overwrite):
            artifact_name(plan_id)
            return
        pending = {str(job.request.get("save_as", "")) for job in self.jobs.list() if not job.finished}
        if plan_id in pending or self._plans.has(plan_id):
            raise UserError("plan_taken", value=plan_id)

    def _data_set(self, value: str, allow_paths: bool) -> str:
        """Where a data set lies: `drawn`, a name in DATA/datasets, or, for the command line, a path."""
        if value in ("", DRAWN):
            return value
        if value in self.data_sets():
            return str(self._data / DATA_SETS / value)
        if allow_paths and Path(value).exists():
            return str(Path(value).resolve())
        raise InvalidInputError(
            "bad_choice", field="data_set", value=value, known=", ".join((DRAWN, *self.data_sets()))
        )

    def _refuse_paths(self, request: EvaluationRequest) -> None:
        """Strangers name no folder of this machine: a checkpoint of a metric is a hub id, or was set by its owner."""
        for name in ("clip", "lpips", "image_reward", "hps"):
            value = str(getattr(request, name))
            if value and (not HUB_ID.fullmatch(value) or ".." in value or Path(value).exists()):
                raise InvalidInputError("bad_choice", field=name, value=value, known="ORGANISATION/NAME")


def _edit(values: Mapping[str, object]) -> BlockEdit:
    """An edit as a door received it. Raises InvalidInputError (bad_plan)."""
    try:
        return TypeAdapter(BlockEdit).validate_json(json.dumps(dict(values)))
    except (ValidationError, TypeError, ValueError) as error:
        why = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise InvalidInputError("bad_plan", field="plan", why=why) from error


def prompts_of(path: Path) -> tuple[str, ...]:
    """The prompts in a text file, one a line; empty lines do not count. Raises UserError (prompts_unreadable)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "UTF-8"
        raise UserError("prompts_unreadable", value=path, why=why) from error
    prompts: Sequence[str] = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError("prompts_unreadable", value=path, why="0")
    return tuple(prompts)
