"""How far two pictures are apart for an eye: LPIPS, and the same measure on the judge of the embedded model's world.

LPIPS (Zhang et al. 2018, arXiv:1801.03924): features of a network are scaled to length 1 at every place, their squared
differences weighted by channel, averaged over the picture and summed over stages. 0 for equal pictures.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zimage_studio.core.evaluation.judge import Judge
from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.errors import ModelError

FILE = "lpips_alex.safetensors"
TAPS = (1, 4, 7, 9, 11)
"""The rectified outputs of AlexNet's five convolutions."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Takes pixels in -1..1 to what AlexNet was trained on."""
EPSILON = 1e-10

Stages = Sequence[Tensor]


def stage_distance(a: Stages, b: Stages, weights: Stages | None = None) -> Tensor:
    """(N,) from features (N, C, H, W) of each stage; `weights` (1, C, 1, 1) of each, else all channels count alike."""
    total = torch.zeros(a[0].shape[0])
    for number, (a_NCHW, b_NCHW) in enumerate(zip(a, b, strict=True)):
        apart_NCHW = (_unit(a_NCHW) - _unit(b_NCHW)) ** 2
        if weights is None:
            apart_N = apart_NCHW.sum(1).mean((1, 2)) / len(a)
        else:
            apart_N = (apart_NCHW * weights[number]).sum(1).mean((1, 2))
        total = total + apart_N
    return total


def _unit(x_NCHW: Tensor) -> Tensor:
    unit: Tensor = x_NCHW / (x_NCHW.pow(2).sum(1, keepdim=True).sqrt() + EPSILON)
    return unit


Distance = Callable[[Sequence[Image.Image], Sequence[Image.Image]], list[float]]


def judge_distance(judge: Judge) -> Distance:
    """By the convolutions of the judge; every stage counts alike, 0..2."""

    def measure(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> list[float]:
        with torch.no_grad():
            return [float(x) for x in stage_distance(judge.stages(a), judge.stages(b))]

    return measure


class Lpips(nn.Module):
    """LPIPS with AlexNet, version 0.1."""

    def __init__(self) -> None:
        super().__init__()
        prepare_torch()
        from torchvision.models import alexnet  # imports torchvision: not before prepare_torch

        self.features = alexnet(weights=None).features
        self.lin = nn.ParameterList(nn.Parameter(torch.zeros(1, c, 1, 1)) for c in (64, 192, 384, 256, 256))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def stages(self, pixels_NCHW: Tensor) -> list[Tensor]:
        """Features of the five stages, for pixels in -1..1."""
        x, found = (pixels_NCHW - self.shift) / self.scale, []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TAPS:
                found.append(x)
        return found

    def __call__(self, a: Sequence[Image.Image], b: Sequence[Image.Image]) -> list[float]:
        """One distance for each pair, at the pictures' own size."""
        return [self._pair(one, other) for one, other in zip(a, b, strict=True)]

    def _pair(self, a: Image.Image, b: Image.Image) -> float:
        with torch.no_grad():
            return float(stage_distance(self.stages(_pixels(a)), self.stages(_pixels(b)), list(self.lin)))


def load_lpips(folder: Path) -> Lpips:
    """From `lpips_alex.safetensors`: `features.*` of torchvision's AlexNet and `lin.0` … `lin.4`. Raises ModelError."""
    path = folder / FILE
    if not path.is_file():
        raise ModelError("report.lpips_missing", value=str(folder), file=FILE)
    model = Lpips()
    model.eval()
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelError("report.clip_damaged", value=FILE, why=str(error).splitlines()[0]) from error
    return model


def _pixels(image: Image.Image) -> Tensor:
    pixels_HWC = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return pixels_HWC.permute(2, 0, 1)[None].float() / 127.5 - 1
