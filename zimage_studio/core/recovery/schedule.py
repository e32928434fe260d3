"""How far training is, and what that makes of the learning rate."""

import math
from dataclasses import dataclass

from zimage_studio.records.recover import RecoveryConfig


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one phase: `steps`, or `seconds` of training."""

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, config: RecoveryConfig, share: float) -> "Budget":
        """`share` of what `config` grants, and at least one step."""
        if config.steps is not None:
            return cls(max(1, round(config.steps * share)), None)
        return cls(None, (config.minutes or 0.0) * 60 * share)

    def done(self, step: int, seconds: float) -> float:
        """The share that is used up, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, seconds / (self.seconds or 1.0)) if step else 0.0

    def middle(self, step: int, seconds: float) -> float:
        """The share used up in the middle of the step that begins now."""
        return self.done(step, seconds) + (0.5 / self.steps if self.steps is not None else 0.0)


def rate_factor(config: RecoveryConfig, share: float) -> float:
    """What the learning rates are multiplied with when `share` of the budget is used up."""
    warm = min(1.0, share / config.warm_up) if config.warm_up else 1.0
    if config.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if share <= config.constant_share:
        return warm
    return warm * max(0.0, (1 - share) / (1 - config.constant_share))
