"""What the process of a compression job does: one function a kind, each joining what core offers. Imports torch late.

Each returns what becomes `JobRecord.result`: for `plan` StoredPlan.public(); for `prune` {"model", "path",
"parameters", "bytes", "peak_memory_bytes", "seconds"}; for `recover` {"model", "path", "steps", "loss_first",
"loss_last", "seconds", "processes"}; for `evaluate` {"card", "metrics", "not_measured"}; for `sensitivity` {"model",
"map"}.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage_studio.core.fingerprint import HashCache, fingerprint
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.recovery.launch import LaunchRequest, accelerators
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import PruneRequest, parse_prune
from zimage_studio.records.job import JobRecord
from zimage_studio.records.plan import PLAN, PrunePlan
from zimage_studio.records.progress import Progress
from zimage_studio.records.recover import RecoveryConfig, processes_on
from zimage_studio.records.report import EvaluationRequest, Metric
from zimage_studio.records.sensitivity_request import SensitivityRequest
from zimage_studio.services.compression import MAP
from zimage_studio.services.family import CARD, report_place, root_of
from zimage_studio.services.files import replace_durably
from zimage_studio.services.job_process import JobProgress, run_job
from zimage_studio.services.job_table import JobTable
from zimage_studio.services.models import EMBEDDED_MODEL, ModelService
from zimage_studio.services.plans import PlanStore, default_name, read_plan
from zimage_studio.services.recovery_processes import recover_together

if TYPE_CHECKING:
    from zimage_studio.core.pruning.scores import Scores
    from zimage_studio.core.recovery.log import Line

log = logging.getLogger(__name__)

LINE_EVERY_S = 5.0
SAVING = "saving"
LOOKING = (0.0, 0.05)
PARTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "plan": {
        "note.hashing": LOOKING,
        "note.calibrating": (0.05, 0.3),
        "note.scoring": (0.3, 0.97),
        "note.planning": (0.97, 1.0),
    },
    "prune": {"note.hashing": (0.0, 0.1), "note.pruning": (0.1, 1.0)},
    "recover": {
        "note.hashing": (0.0, 0.01),
        "note.recover_pictures": (0.01, 0.04),
        "note.recover_captions": (0.04, 0.06),
        "note.recover_teacher": (0.06, 0.2),
        "note.recover_train": (0.2, 0.98),
        "note.recover_write": (0.98, 1.0),
    },
    "evaluate": {"note.hashing": (0.0, 0.01), "": (0.01, 1.0)},
    "sensitivity": {"note.hashing": LOOKING, "note.calibrating": (0.05, 0.3), "note.mapping": (0.3, 1.0)},
}
"""Which share of the whole each part is, by its note; "" for all that are not named. Loading moves nothing."""


@dataclass(frozen=True, slots=True)
class CompressionWork:
    """The services that a job needs, in its own process."""

    data: Path
    models: ModelService
    plans: PlanStore
    offline: bool

    def __call__(self, job: JobRecord, folder: Path, progress: JobProgress) -> Mapping[str, object]:
        """Do what `job` asks; see the module."""
        from zimage_studio.core.torch_environment import prepare_torch

        prepare_torch()
        kinds: dict[str, Callable[[Mapping[str, Any], Path, Progress], Mapping[str, object]]] = {
            "plan": self._plan,
            "prune": self._prune,
            "recover": self._recover,
            "evaluate": self._evaluate,
            "sensitivity": self._sensitivity,
        }
        progress.parts(PARTS[job.kind])
        return kinds[job.kind](job.request, folder, progress)

    # --- plan

    def _plan(self, request: Mapping[str, Any], folder: Path, progress: Progress) -> Mapping[str, object]:
        from zimage_studio.core.pruning.planning import make_plan

        artifact = self._local(request["path"], progress)
        wanted = parse_prune(request["request"])
        scores = self._scores(artifact, wanted, progress)
        plan = make_plan(wanted, artifact, Path(artifact.path), scores, progress)
        name = self._plan_name(request, folder / SAVING, default_name(plan, artifact.key))
        scores.save(self.plans.scores_of(name))
        return self.plans.save(plan, name).public()

    def _plan_name(self, request: Mapping[str, Any], note: Path, default: str) -> str:
        """What to call the plan: as asked, with a number where another plan came to be called so meanwhile.

        `note` remembers the name, so that a job that was killed after saving saves in the same place.
        """
        if note.is_file():
            return note.read_text(encoding="utf-8")
        asked = str(request["save_as"])
        name = asked if asked and request.get("overwrite") else self.plans.free(asked or default)
        replace_durably(note, name.encode())
        return name

    def _scores(self, artifact: ModelArtifact, wanted: PruneRequest, progress: Progress) -> "Scores":
        """What the criterion says; one that only looks at the weights reads them block by block from the disk."""
        from zimage_studio.core.pruning.calibration_prompts import calibration_prompts
        from zimage_studio.core.pruning.criteria import score

        folder = Path(artifact.path)
        prompts = calibration_prompts(folder, wanted.prompts, wanted.seed)
        return score(folder, wanted.criterion, wanted.kinds, prompts=prompts, seed=wanted.seed, progress=progress)

    def planned(self, wanted: PruneRequest, folder: Path, progress: Progress) -> PrunePlan:
        """A plan for the model in `folder`, which is in no list."""
        from zimage_studio.core.pruning.planning import make_plan

        facts = inspect_folder(folder)
        artifact = ModelArtifact(
            key=wanted.model, kind="folder", path=str(folder), name=wanted.model, family=facts.family,
            sha256=fingerprint(facts.files), parameters=facts.parameters, bytes=facts.bytes, defaults=facts.defaults,
        )  # fmt: skip
        return make_plan(wanted, artifact, folder, self._scores(artifact, wanted, progress), progress)

    # --- prune

    def _prune(self, request: Mapping[str, Any], folder: Path, progress: Progress) -> Mapping[str, object]:
        from zimage_studio.core.pruning.artifact import write_pruned

        started = time.monotonic()
        artifact = self._local(request["path"], progress)
        plan = PrunePlan.from_json(json.dumps(request["plan"]))
        out = self._models_folder / str(request["name"])
        if _is_made_by(out, plan):  # the last start was killed after the model had appeared
            made = self.models.get(str(out), allow_paths=True)
            return self._described(out) | _numbers(made, 0, time.monotonic() - started)
        cut = write_pruned(Path(artifact.path), out, plan, progress=progress, cache=self._hashes)
        numbers = {name: getattr(cut, name) for name in ("parameters", "bytes", "peak_memory_bytes", "seconds")}
        return self._described(out) | numbers

    # --- recover

    def _recover(self, request: Mapping[str, Any], folder: Path, progress: Progress) -> Mapping[str, object]:
        config = RecoveryConfig.from_dict(request["config"])
        count = processes_on(config.processes, accelerators())
        student = self._local(request["path"], progress)
        teacher: ModelArtifact | None = None
        if config.uses_teacher:
            taught = str(request["teacher"])
            teacher = self._local(taught, progress) if taught else root_of(self.models, student, progress)
        out = self._models_folder / str(request["name"])
        taught_by = None if teacher is None else Path(teacher.path)
        asked = LaunchRequest(Path(student.path), out, folder, config, taught_by)
        if count > 1:
            numbers = recover_together(
                asked, count, data=self.data, job_id=folder.name, progress=progress, on_log=LossLines()
            )
        else:
            cutter = PlanCutter(self, student, progress) if config.cuts else None
            done = asked.run(progress, LossLines(), cutter)
            numbers = {name: getattr(done, name) for name in ("steps", "loss_first", "loss_last", "seconds")}
        self._local(str(out), progress)  # its hash is known from now on
        return self._described(out) | {**numbers, "processes": count}

    # --- evaluate

    def _evaluate(self, request: Mapping[str, Any], folder: Path, progress: Progress) -> Mapping[str, object]:
        from zimage_studio.core.evaluation.evaluate import Surroundings, evaluate

        model = self._local(request["path"], progress)
        against = str(request["against"])
        parent = self._local(against, progress) if against else root_of(self.models, model, progress)
        out = report_place(self.data, model)
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{out.name}.*.tmp"):  # of a start that was killed: jobs run one at a time
            shutil.rmtree(left, ignore_errors=True)
        card = evaluate(
            Path(model.path),
            Path(parent.path),
            out=out,
            progress=progress,
            request=EvaluationRequest.from_dict(request["request"]),
            work=folder / "work",
            surroundings=Surroundings(names=(model.name, parent.name), hashes=self._hashes, offline=self.offline),
        )
        return {
            "model": model.key,
            "against": parent.key,
            "card": str(out / CARD),
            "metrics": [_metric(metric) for metric in card.metrics],
            "not_measured": [asdict(missing) for missing in card.not_measured],
        }

    # --- sensitivity

    def _sensitivity(self, request: Mapping[str, Any], folder: Path, progress: Progress) -> Mapping[str, object]:
        from zimage_studio.core.loading import load_pipeline
        from zimage_studio.core.pruning.calibration import DEFAULT_STEPS, MAX_SIDE_PX
        from zimage_studio.core.pruning.calibration_prompts import calibration_prompts
        from zimage_studio.core.pruning.sensitivity import HALVES, sensitivity_map

        artifact = self._local(request["path"], progress)
        wanted = SensitivityRequest.from_dict(request["request"])
        prompts = wanted.prompts or calibration_prompts(Path(artifact.path), wanted.count, wanted.seed)
        pipeline = load_pipeline(artifact, progress=progress)
        parts = (*HALVES, "head") if wanted.heads else HALVES
        own = inspect_folder(Path(artifact.path)).defaults  # as it likes to draw, but no longer than it must
        found = sensitivity_map(
            pipeline, prompts, wanted.seeds, by_timestep=wanted.by_timestep, progress=progress, parts=parts,
            steps=min(own.steps, DEFAULT_STEPS), guidance=own.guidance,
            size=(min(own.width, MAX_SIDE_PX), min(own.height, MAX_SIDE_PX)),
        )  # fmt: skip
        replace_durably(folder / MAP, found.to_json().encode())
        return {"model": artifact.key, "map": str(folder / MAP)}

    # --- what they share

    @property
    def _models_folder(self) -> Path:
        folder = self.data / "models"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def _hashes(self) -> HashCache:
        return HashCache(self.data / "hashes.json")

    def _local(self, path: str, progress: Progress) -> ModelArtifact:
        """The model at a path or with a hub id, on this machine and with its hash."""
        artifact = self.models.identity(self.models.get(path, allow_paths=True), progress)
        progress(0, 1, "note.importing")  # what comes next wants torch first, which takes seconds
        return artifact

    def _described(self, out: Path) -> dict[str, object]:
        return {"model": self.models.get(str(out), allow_paths=True).key, "path": str(out)}


def work_of(data: Path, job_id: str) -> CompressionWork:
    """The services of a job, with the settings that it was queued with."""
    given, _ = JobTable(data / "jobs.sqlite").settings(job_id)
    folders = [Path(str(path)) for path in given.get("models", ())]  # type: ignore[attr-defined]
    offline = bool(given.get("offline"))
    models = ModelService(data=data, folders=folders, embedded=EMBEDDED_MODEL, offline=offline)
    return CompressionWork(data, models, PlanStore(data / "plans"), offline)


def run_compression_job(data: Path, job_id: str, *, parent: int | None = None, held: int | None = None) -> int:
    """The process of one compression job; returns the exit status."""

    def work(job: JobRecord, folder: Path, progress: JobProgress) -> Mapping[str, object]:
        return work_of(data, job.id)(job, folder, progress)

    return run_job(data, job_id, work, parent=parent, held=held)


@dataclass(frozen=True, slots=True)
class PlanCutter:
    """What progressive recovery cuts with: plans by name, or ratios as the student itself was cut."""

    work: CompressionWork
    student: ModelArtifact
    progress: Progress

    def plan(self, folder: Path, cut: float | str) -> PrunePlan:
        """The plan for the model in `folder`: for a ratio, or the stored one of this name.

        A ratio is cut by the kinds and the criterion of the student's own plan; its feed-forwards by Taylor where it
        has none.
        """
        if isinstance(cut, str):
            return self.work.plans.get(cut).plan
        own = Path(self.student.path) / PLAN
        before = read_plan(own).plan if own.is_file() else None
        wanted = PruneRequest(
            model=self.student.key,
            kinds=before.kinds if before else ("ffn",),
            criterion=before.criterion if before else "taylor",
            ratio=cut,
        )
        return self.work.planned(wanted, folder, self.progress)

    def prune(self, folder: Path, plan: PrunePlan, out: Path) -> None:
        """Cut. The model may have been trained since the plan was made: its kept units are meant, whatever the hash."""
        from zimage_studio.core.pruning.artifact import write_pruned

        found = fingerprint(inspect_folder(folder).files)
        write_pruned(folder, out, replace(plan, model_sha256=found), progress=self.progress)


def _is_made_by(out: Path, plan: PrunePlan) -> bool:
    path = out / PLAN
    return path.is_file() and path.read_text(encoding="utf-8") == plan.to_json()


def _numbers(made: ModelArtifact, peak_bytes: int, seconds: float) -> dict[str, object]:
    return {
        "parameters": made.parameters,
        "bytes": made.bytes,
        "peak_memory_bytes": peak_bytes,
        "seconds": round(seconds, 3),
    }


def _metric(metric: Metric) -> dict[str, object]:
    return {**asdict(metric), "interval": None if metric.interval is None else list(metric.interval)}


class LossLines:
    """Says in the log of the job how training goes, at most every few seconds; log.jsonl has every line."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, line: "Line") -> None:
        """Take in one line of training."""
        if line.validation is None and time.monotonic() - self._said < LINE_EVERY_S:
            return
        self._said = time.monotonic()
        loss, validation = ("-" if value is None else f"{value:.5f}" for value in (line.loss, line.validation))
        log.info("%s: step %d, loss %s, validation %s", line.phase, line.step, loss, validation)
