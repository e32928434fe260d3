"""Recovery as a whole: prepare the data, train (for each cut: sparsity, cut, recovery), write the model.

Every step leaves something on the disk that the next start finds: the cache, the checkpoint of each phase, the folders
of the stages. So a run can be stopped or killed anywhere and started again with the same arguments.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ZImageTransformer2DModel

from zimage_studio.core.fingerprint import fingerprint
from zimage_studio.core.loading import component_dtypes, load_component
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.recovery import lora, sparsity
from zimage_studio.core.recovery.folder import RECOVERY, write_folder
from zimage_studio.core.recovery.log import Log, OnLog
from zimage_studio.core.recovery.optimisers import require_available
from zimage_studio.core.recovery.preparation import Prepared, number_from, prepare
from zimage_studio.core.recovery.samples import Samples
from zimage_studio.core.recovery.store import write_text
from zimage_studio.core.recovery.training import Phase, Training
from zimage_studio.core.recovery.world import World
from zimage_studio.core.weight_headers import read_json
from zimage_studio.core.whole_folder import require_room
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.plan import PrunePlan
from zimage_studio.records.progress import Preview, Progress, silent
from zimage_studio.records.recover import RecoveryConfig

DOES_NOT_MATTER = ("validate_every_s", "samples", "sample_every_s", "checkpoint_every_s", "processes")
"""What may change between two starts: it decides what is seen of training, not what comes out.

How many processes there really are does decide, and is counted beside the settings.
"""
CHECKPOINT_NUMBERS = 4
"""Weights, average and two moments."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The new model, and what training did: `seconds` and `steps` over all starts and phases."""

    path: Path
    steps: int
    loss_first: float | None
    loss_last: float | None
    seconds: float


class Cutter(Protocol):
    """What progressive recovery cuts with, handed in."""

    def plan(self, folder: Path, cut: float | str) -> PrunePlan:
        """The plan for the model in `folder`: for a ratio, or the one with this id."""

    def prune(self, folder: Path, plan: PrunePlan, out: Path) -> None:
        """Cut. The model may have been trained since `plan` was made for it; its shapes are the same."""


def recover(
    student: Path,
    out: Path,
    config: RecoveryConfig,
    *,
    teacher: Path | None = None,
    data: str | None = None,
    checkpoint_dir: Path,
    device: str = "auto",
    cutter: Cutter | None = None,
    progress: Progress = silent,
    on_log: OnLog | None = None,
) -> Recovered:
    """Train the model in the folder `student` and write the result to the new folder `out`.

    `data` is where the data set of `config` lies, when that is a name that only the caller knows. `checkpoint_dir`
    keeps cache, checkpoints, log.jsonl and samples; the first two are removed at the end. `progress` may raise
    Cancelled: then a checkpoint is written first. `on_log` hears each line of the log. Started by
    `accelerate launch`, every process calls this with the same arguments; the first one reports and writes.
    Raises InvalidInputError, ModelError, StorageError, NonFiniteError.
    """
    config = config if data is None else replace(config, data_set=data)
    if config.uses_teacher and teacher is None:
        raise InvalidInputError("recover_no_teacher", field="teacher", value=config.teacher or "-")
    if config.cuts and cutter is None:
        raise InvalidInputError("recover_no_cutter", field="cuts")
    world = World(device)
    require_available(config, world.device)
    run = _Run(student, out, config, checkpoint_dir, world, progress, on_log, teacher)
    if out.exists():
        return run.finished_before()
    return run.run(cutter)


class _Run:
    """One call of `recover`."""

    def __init__(
        self,
        student: Path,
        out: Path,
        config: RecoveryConfig,
        folder: Path,
        world: World,
        progress: Progress,
        on_log: OnLog | None,
        teacher: Path | None,
    ) -> None:
        self._student, self._out, self._config, self._folder = student, out, config, folder
        self._world, self._progress, self._teacher = world, progress, teacher
        self._log = Log(folder, on_log)
        self._parent = fingerprint(inspect_folder(student).files)
        self._settings = self._hash()
        self._done: list[Training] = []
        self._spent = 0.0
        frozen = component_dtypes(world.device)["transformer"]
        self._frozen = frozen
        wanted = {"auto": frozen, "fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
        self._autocast = None if wanted == torch.float32 else wanted

    def finished_before(self) -> Recovered:
        """What an earlier start wrote, if it was this very run."""
        path = self._out / RECOVERY
        found = read_json(path) if path.is_file() else {}
        if found.get("settings") != self._settings:
            raise InvalidInputError("recover_exists", field="out", value=str(self._out))
        self._clear()
        numbers = {name: found[name] for name in ("steps", "loss_first", "loss_last", "seconds")}
        return Recovered(path=self._out, **numbers)

    def run(self, cutter: Cutter | None) -> Recovered:
        """All phases, from wherever the last start came to."""
        self._folder.mkdir(parents=True, exist_ok=True)
        prepared = self._prepare()
        if not self._config.cuts:
            result = self._phase(prepared, self._student, self._out, "recover", 1.0)
        else:
            result = self._progressive(prepared, cutter)
        self._clear()
        return result

    def _prepare(self) -> Prepared:
        """The first process fills the cache, the others find it full."""
        if not self._world.first:
            self._world.wait()
        prepared = prepare(
            self._folder / "cache", self._student, self._teacher, self._config, device=self._world.device,
            dtype=self._frozen, progress=self._progress if self._world.first else silent,
        )  # fmt: skip
        if self._world.first:
            self._world.wait()
        return prepared

    def _progressive(self, prepared: Prepared, cutter: Cutter | None) -> Recovered:
        assert cutter is not None  # `recover` refused it
        stages, current, result = len(self._config.cuts), self._student, None
        for number, cut in enumerate(self._config.cuts, start=1):
            work = self._folder / "stages"
            plan = self._plan(cutter, current, cut, work / f"{number}-plan.json")
            sparse = self._config.sparsity_share / stages
            if sparse:
                trained = work / f"{number}-sparse"
                self._phase(prepared, current, trained, f"{number}-sparsity", sparse, _penalty(plan))
                current = trained
            pruned = work / f"{number}-cut"
            if self._world.first and not pruned.exists():
                cutter.prune(current, plan, pruned)
            self._world.wait()
            current = self._out if number == stages else work / f"{number}-recovered"
            result = self._phase(prepared, pruned, current, f"{number}-recover", 1 / stages - sparse)
        assert result is not None
        return result

    def _plan(self, cutter: Cutter, folder: Path, cut: float | str, path: Path) -> PrunePlan:
        """Made once: a second start cuts what the first one wanted to cut."""
        if self._world.first and not path.is_file():
            write_text(path, cutter.plan(folder, cut).to_json())
        self._world.wait()
        return PrunePlan.from_json(path.read_text(encoding="utf-8"))

    def _phase(
        self,
        prepared: Prepared,
        folder: Path,
        target: Path,
        name: str,
        share: float,
        penalty: Callable[[ZImageTransformer2DModel], sparsity.Penalty] | None = None,
    ) -> Recovered:
        """Train the model in `folder` for `share` of the budget into the new folder `target`."""
        if not target.exists():
            transformer = self._trainable(folder)
            training = Training(
                transformer, prepared, self._config, Phase(name, share, f"{self._settings}/{name}", penalty),
                folder=self._folder / "checkpoint", world=self._world, log=self._log, autocast=self._autocast,
                samples=self._samples(prepared),
            )  # fmt: skip
            training.run(self._counting(share))
            if self._world.first:
                self._progress(0, 1, "note.recover_write")
                self._write(folder, target, transformer, training)
            self._world.wait()
        self._spent += share
        found = read_json(target / RECOVERY)
        numbers = {key: found[key] for key in ("steps", "loss_first", "loss_last", "seconds")}
        return Recovered(path=target, **numbers)

    def _write(self, folder: Path, target: Path, transformer: ZImageTransformer2DModel, training: Training) -> None:
        run: dict[str, Any] = {
            "settings": self._settings, "config": self._config.to_dict(), "processes": self._world.size,
            "device": str(self._world.device), "steps": training.steps, "loss_first": training.loss_first,
            "loss_last": training.loss_last, "seconds": round(training.seconds, 2),
        }  # fmt: skip
        with training.average.in_place():
            write_folder(
                folder, target, transformer, parent=self._parent, parent_name=self._student.name, facts_of_run=run
            )

    def _trainable(self, folder: Path) -> ZImageTransformer2DModel:
        as_lora = self._config.trainable == "lora"
        dtype = self._frozen if as_lora and self._autocast is not None else torch.float32
        transformer: ZImageTransformer2DModel = load_component(
            folder, "transformer", device=self._world.device, dtype=dtype, progress=silent
        )
        transformer.requires_grad_(True)
        if as_lora:
            lora.attach(transformer, self._config.lora_rank, number_from(self._config.seed, "lora"))
        if self._config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        trained = sum(weight.numel() for weight in lora.trained(transformer).values())
        if self._world.first:  # an old and a new checkpoint lie side by side
            require_room(self._folder, 2 * CHECKPOINT_NUMBERS * 4 * trained)
        return transformer.train()

    def _samples(self, prepared: Prepared) -> Samples | None:
        if not self._world.first or not prepared.index.samples:
            return None
        vae = load_component(self._student, "vae", device=self._world.device, dtype=torch.float32, progress=silent)
        return Samples(self._folder / "samples", prepared, vae, self._config.seed)

    def _counting(self, share: float) -> Progress:
        """Counts over all phases."""
        whole = float(self._config.steps or (self._config.minutes or 0.0) * 60)
        before = self._spent * whole

        def tell(done: float, total: float, note: str, /, preview: Preview | None = None) -> object:
            return self._progress(before + min(done, share * whole), whole, note, preview)

        return tell

    def _clear(self) -> None:
        """Keep log and samples; the rest has served."""
        self._world.wait()
        if self._world.first:
            for name in ("cache", "checkpoint", "stages"):
                shutil.rmtree(self._folder / name, ignore_errors=True)

    def _hash(self) -> str:
        config = {name: value for name, value in self._config.to_dict().items() if name not in DOES_NOT_MATTER}
        teacher = None if self._teacher is None else fingerprint(inspect_folder(self._teacher).files)
        said = {"config": config, "student": self._parent, "teacher": teacher, "processes": self._world.size}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _penalty(plan: PrunePlan) -> Callable[[ZImageTransformer2DModel], sparsity.Penalty]:
    return lambda transformer: sparsity.penalty(transformer, plan)
