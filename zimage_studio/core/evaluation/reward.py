"""ImageReward (Xu et al. 2023, arXiv:2304.05977), where its package and its weights are on this machine.

The package is not among Studio's requirements: it pins older libraries. Its weights are published as a pickle; they
are read here only as safetensors, into which anyone who trusts them can convert them once.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from zimage_studio.errors import ModelError

PACKAGE = "ImageReward"
WEIGHTS, CONFIG = "ImageReward.safetensors", "med_config.json"


class ImageRewardScorer:
    """The reward model of the package."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """The reward of each picture for its own caption, about 0 with a standard deviation of 1."""
        return [float(self._model.score(caption, [image])) for image, caption in zip(images, captions, strict=True)]


def load_image_reward(folder: Path, *, device: str = "cpu") -> ImageRewardScorer:
    """The package's network with the weights in `folder`. Raises ModelError with what to install."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ModelError("report.package_missing", value=PACKAGE)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ModelError("report.weights_missing", value=str(folder), file=name)
    module = importlib.import_module(f"{PACKAGE}.ImageReward")
    try:
        model = module.ImageReward(device=device, med_config=str(folder / CONFIG)).to(device).eval()
        model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError("report.clip_damaged", value=WEIGHTS, why=str(error).splitlines()[0]) from error
    return ImageRewardScorer(model)
