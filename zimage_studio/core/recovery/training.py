"""The training loop of one phase: from the last checkpoint, if there is one, to the end of its budget.

In steps mode the weights at the end depend on settings, data and student alone: a run that was killed and resumed
ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from zimage_studio.core.recovery import checkpoints, lora
from zimage_studio.core.recovery.batches import Batches
from zimage_studio.core.recovery.ema import Average
from zimage_studio.core.recovery.log import Line, Log
from zimage_studio.core.recovery.losses import distillation_loss, flow_loss, noised
from zimage_studio.core.recovery.optimisers import Optimisers
from zimage_studio.core.recovery.preparation import Prepared
from zimage_studio.core.recovery.samples import Samples
from zimage_studio.core.recovery.schedule import Budget, rate_factor
from zimage_studio.core.recovery.sparsity import Penalty
from zimage_studio.core.recovery.velocity import Velocity
from zimage_studio.core.recovery.world import World
from zimage_studio.errors import Cancelled, NonFiniteError
from zimage_studio.records.progress import Progress
from zimage_studio.records.recover import RecoveryConfig

LOG_EVERY_S = 0.5
GO_ON, FINISHED, STOP = 0.0, 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the whole: its name, its share of the budget, what its checkpoint must agree with, and a penalty."""

    name: str
    share: float
    settings: str
    penalty: Callable[[ZImageTransformer2DModel], Penalty] | None = None


@dataclass(slots=True)
class _Clock:
    """Seconds of training, over all starts, and when things were last done."""

    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    last: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def due(self, what: str, every_s: float) -> bool:
        return self.now() - self.last.setdefault(what, self.now()) >= every_s

    def did(self, what: str) -> None:
        self.last[what] = self.now()


class Training:
    """Trains `transformer` in place. `folder` keeps checkpoint and log."""

    def __init__(
        self,
        transformer: ZImageTransformer2DModel,
        prepared: Prepared,
        config: RecoveryConfig,
        phase: Phase,
        *,
        folder: Path,
        world: World,
        log: Log,
        autocast: torch.dtype | None,
        samples: Samples | None,
    ) -> None:
        self._config, self._phase, self._world, self._log, self._samples = config, phase, world, log, samples
        self._path = folder / f"{phase.name}.safetensors"
        self._weights = lora.trained(transformer)
        self._predict = Velocity(transformer, autocast)
        self._batches = Batches(prepared, config, phase.name)
        self._budget = Budget.of(config, phase.share)
        self._optimisers = Optimisers(self._weights, config, world.device)
        self._average = Average(self._weights, config.ema)
        self._penalty = None if phase.penalty is None else phase.penalty(transformer)
        self._clock = _Clock()
        self._step, self._losses, self._rate = 0, [], 0.0  # type: tuple[int, list[float], float]
        self._validated = -1
        self.loss_first: float | None = None
        self.loss_last: float | None = None

    @property
    def steps(self) -> int:
        """Steps done, over all starts."""
        return self._step

    @property
    def seconds(self) -> float:
        """Seconds of training, over all starts."""
        return self._clock.now()

    @property
    def average(self) -> Average:
        """The weights to keep."""
        return self._average

    def run(self, progress: Progress) -> None:
        """To the end of the budget. Raises Cancelled after writing a checkpoint, NonFiniteError when it diverges."""
        if self._resume():
            return
        if self._step == 0:
            self._validate()
        while (decision := self._decide(progress)) == GO_ON:
            self._train_step()
            self._report()
            if self._world.first and self._clock.due("checkpoint", self._config.checkpoint_every_s):
                self._save(finished=False)
        self._world.require_same(self._weights.values())
        if decision == STOP:
            self._save(finished=False)
            raise Cancelled
        self._validate()
        self._sample()
        self._save(finished=True)

    def _decide(self, progress: Progress) -> float:
        """What the first process decides, all do: the clock and the stop are its own."""
        decision = GO_ON
        if self._world.first:
            share = self._budget.done(self._step, self._clock.now())
            decision = FINISHED if share >= 1 else GO_ON
            if self._budget.steps is None:
                done, total = share * (self._budget.seconds or 0.0), self._budget.seconds or 0.0
            else:
                done, total = float(self._step), float(self._budget.steps)
            try:
                progress(done, total, "note.recover_train")
            except Cancelled:
                decision = STOP
        return self._world.agreed(decision)

    # --- one step ---------------------------------------------------------------------------------------------------

    def _train_step(self) -> None:
        share = self._world.agreed(self._budget.middle(self._step, self._clock.now()))
        factor = rate_factor(self._config, share)
        loss = sum(self._accumulate(turn) for turn in range(self._config.accumulation))
        if self._penalty is not None:
            penalty = self._penalty() * self._config.sparsity_weight
            penalty.backward()
            loss += float(penalty.detach())
        weights = list(self._weights.values())
        self._world.average_gradients(weights)
        loss = self._world.mean(loss)
        if not math.isfinite(loss):
            raise NonFiniteError("recover_diverged", step=self._step + 1)
        if self._config.clip_norm:
            nn.utils.clip_grad_norm_(weights, self._config.clip_norm)
        self._optimisers.step(factor)
        self._step += 1
        self._average.follow(self._step)
        self._losses.append(loss)
        self._rate = self._config.lr * factor
        self.loss_first = loss if self.loss_first is None else self.loss_first
        self.loss_last = loss

    def _accumulate(self, turn: int) -> float:
        """Gradients of one small batch; the losses backward one after the other, to hold one graph at a time."""
        number = (self._step * self._config.accumulation + turn) * self._world.size + self._world.rank
        total = 0.0
        for loss, weight in self._losses_of(number):
            scaled = loss() * (weight / self._config.accumulation)
            scaled.backward()
            total += float(scaled.detach())
        return total

    def _losses_of(self, number: int) -> list[tuple[Callable[[], Tensor], float]]:
        wanted: list[tuple[Callable[[], Tensor], float]] = []
        if self._config.uses_flow and self._config.flow_weight:
            wanted.append((lambda: self._flow(number), self._config.flow_weight))
        if self._config.uses_teacher and self._config.distil_weight:
            wanted.append((lambda: self._distil(number), self._config.distil_weight))
        return wanted

    def _flow(self, number: int) -> Tensor:
        batch = self._batches.flow(number)
        noisy = noised(batch.clean_BCHW, batch.noise_BCHW, batch.sigma_B)
        return flow_loss(self._predict(noisy, batch.sigma_B, batch.captions), batch.clean_BCHW, batch.noise_BCHW)

    def _distil(self, number: int) -> Tensor:
        batch = self._batches.distil(number)
        return distillation_loss(self._predict(batch.latents_BCHW, batch.sigma_B, batch.captions), batch.teacher_BCHW)

    # --- what is seen of it -----------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Only the first process measures and draws; the others wait for its next decision."""
        if not self._world.first:
            return
        if self._clock.due("validation", self._config.validate_every_s):
            self._validate()
        elif self._clock.due("line", LOG_EVERY_S):
            self._line(None)
        if self._clock.due("sample", self._config.sample_every_s):
            self._sample()

    def _line(self, validation: float | None) -> None:
        self._clock.did("line")
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        seconds = self._clock.now()
        share = self._budget.done(self._step, seconds)
        self._log.write(Line(self._phase.name, self._step, loss, validation, self._rate, round(seconds, 2), share))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _validate(self) -> None:
        """Once for a step: the last one may have been due anyway."""
        if not self._world.first or self._validated == self._step:
            return
        self._validated = self._step
        total = 0.0
        with self._average.in_place():
            if self._config.uses_flow:
                losses = []
                for flow in self._batches.held_out_flow():
                    noisy = noised(flow.clean_BCHW, flow.noise_BCHW, flow.sigma_B)
                    predicted = self._predict(noisy, flow.sigma_B, flow.captions)
                    losses.append((float(flow_loss(predicted, flow.clean_BCHW, flow.noise_BCHW)), len(noisy)))
                total += self._config.flow_weight * _weighted(losses)
            if self._config.uses_teacher:
                losses = []
                for lesson in self._batches.held_out_distil():
                    predicted = self._predict(lesson.latents_BCHW, lesson.sigma_B, lesson.captions)
                    losses.append((float(distillation_loss(predicted, lesson.teacher_BCHW)), len(predicted)))
                total += self._config.distil_weight * _weighted(losses)
        self._line(total)
        self._clock.did("validation")

    def _sample(self) -> None:
        if self._world.first and self._samples is not None:
            with self._average.in_place():
                self._samples.draw(self._predict, f"{self._phase.name}-{self._step:06d}")
        self._clock.did("sample")

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, *, finished: bool) -> None:
        if not self._world.first:
            return
        state = checkpoints.State(
            settings=self._phase.settings, step=self._step, seconds=self._clock.now(), loss_first=self.loss_first,
            loss_last=self.loss_last, finished=finished,
        )  # fmt: skip
        groups = {"weights": self._weights, "average": self._average.values, "optimiser": self._optimisers.tensors()}
        checkpoints.save(self._path, state, groups)
        self._clock.did("checkpoint")

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _resume(self) -> bool:
        """Take up the last checkpoint. Returns whether nothing is left to do."""
        found = checkpoints.load(self._path, self._phase.settings)
        if found is None:
            if self._world.first:
                self._log.rewind(self._phase.name, -1)
            return False
        state, groups = found
        for name, weight in self._weights.items():
            weight.copy_(groups["weights"][name])
        self._average.load(groups.get("average", {}))
        self._optimisers.load(groups.get("optimiser", {}))
        self._step, self._clock.seconds = state.step, state.seconds
        self.loss_first, self.loss_last = state.loss_first, state.loss_last
        if self._world.first:
            self._log.rewind(self._phase.name, self._step)
        return state.finished


def _weighted(losses: list[tuple[float, int]]) -> float:
    count = sum(size for _, size in losses)
    return sum(loss * size for loss, size in losses) / count if count else 0.0
