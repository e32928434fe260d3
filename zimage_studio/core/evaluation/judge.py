"""A small classifier that says what one of the embedded model's pictures shows.

It knows the drawn world of `zimage_studio/core/drawn/drawings.py` and nothing else: one object on one background. On a
photograph, a picture with two objects or one of another model its answer means nothing, and it has no way to say so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIDE_PX = 128
SCHEMA = 1
QUESTIONS = ("object", "object_colour", "background_colour", "pattern", "position")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge sees in one picture; words of the drawing script, in English."""

    object: str
    object_colour: str
    background_colour: str
    pattern: str
    position: str


class JudgeNetwork(nn.Module):
    """Five strided convolutions and one linear layer per question.

    `answers` names the possible answers to each of `QUESTIONS`, in the order of the outputs.
    """

    def __init__(self, answers: Mapping[str, Sequence[str]], channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *channels), channels, strict=False):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        width = channels[-1] * (SIDE_PX >> len(channels)) ** 2
        self.heads = nn.ModuleDict({question: nn.Linear(width, len(words)) for question, words in answers.items()})

    def forward(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """Logits (N, answers) by question, for RGB pictures of 128 px in -1..1."""
        features_NF = self.features(images_NCHW).flatten(1)
        return {question: head(features_NF) for question, head in self.heads.items()}


class Judge:
    """A trained `JudgeNetwork` with its words."""

    def __init__(self, network: JudgeNetwork, answers: Mapping[str, Sequence[str]], channels: Sequence[int]) -> None:
        self._network = network.eval()
        self._answers = {question: tuple(answers[question]) for question in QUESTIONS}
        self._channels = tuple(channels)

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """Read `config.json` and `model.safetensors`, on the CPU in float32."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if config.get("schema") != SCHEMA:
            raise ValueError(f"{folder}: the judge has schema {config.get('schema')!r}; this version reads {SCHEMA}.")
        network = JudgeNetwork(config["answers"], config["channels"])
        weights = load_file(folder / "model.safetensors")
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return cls(network, config["answers"], config["channels"])

    def save(self, folder: Path) -> None:
        """Write what `load` reads; the weights as bfloat16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"schema": SCHEMA, "side_px": SIDE_PX, "channels": self._channels, "answers": self._answers}
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        weights = {
            name: (value.bfloat16() if value.is_floating_point() else value).contiguous()
            for name, value in self._network.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors")

    def __call__(self, images: Sequence[Image.Image], *, batch: int = 64) -> list[Verdict]:
        """One verdict per picture. Pictures of other sizes are resized to 128 px, squeezing if they must."""
        verdicts: list[Verdict] = []
        for start in range(0, len(images), batch):
            with torch.no_grad():
                logits = self._network(as_tensor(images[start : start + batch], SIDE_PX))
            columns = [self._words(question, logits[question]) for question in QUESTIONS]
            verdicts += [Verdict(*words) for words in zip(*columns, strict=True)]
        return verdicts

    def stages(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """What the convolutions find: (N, C, H, W) after each of them."""
        x, found = as_tensor(images, SIDE_PX), []
        for layer in self._network.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found

    def _words(self, question: str, logits_NA: Tensor) -> list[str]:
        return [self._answers[question][index] for index in logits_NA.argmax(1).tolist()]


def as_tensor(images: Sequence[Image.Image], side_px: int) -> Tensor:
    """Pictures as float32 (N, 3, side, side) in -1..1."""
    square = (side_px, side_px)
    resized = [image if image.size == square else image.resize(square, Image.Resampling.BOX) for image in images]
    pixels_NHWC = np.stack([np.asarray(image.convert("RGB")) for image in resized])
    return torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
