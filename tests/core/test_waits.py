"""What waits for the device between the first step and the decoder: the finite check, once a step, and no more."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny_random
from zimage_studio.core import sampling
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Waits(TorchDispatchMode):
    """Counts what would make a GPU finish its work first, while `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += self.on and func in READS
        return func(*args, **(kwargs or {}))


def waits(steps: int, guidance: float) -> int:
    pipeline = tiny_random.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    request = GenerationRequest(prompt="a fish", seed=1, width=64, height=64, steps=steps, guidance=guidance)
    to_rgb, scheduler = LatentToRgb.fit(pipeline.vae), dict(pipeline.scheduler.config)
    mode = Waits()
    pipeline.transformer.register_forward_pre_hook(lambda *_: setattr(mode, "on", True))
    pipeline.vae.decoder.register_forward_pre_hook(lambda *_: setattr(mode, "on", False))
    with mode:
        sampling.sample(pipeline, request, scheduler_config=scheduler, to_rgb=to_rgb, progress=silent)
    return mode.count


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_step_waits_once_for_the_finite_check(monkeypatch, guidance):
    monkeypatch.setattr(sampling, "PREVIEW_EVERY_S", 3600.0)
    assert waits(6, guidance) - waits(3, guidance) == 3
    assert waits(3, guidance) <= 3 + 2  # once an image diffusers looks up where in the schedule it stands
