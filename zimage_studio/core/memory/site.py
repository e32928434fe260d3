"""What a switch is handed: the pipeline, what was asked, and where weights may go."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.models.transformers.transformer_z_image import FeedForward, ZImageTransformerBlock
from torch import nn

from zimage_studio.records.memory import MemoryProfile, State

Answer = tuple[State, str, dict[str, object]]
"""State, message key and its values."""

OFF: Answer = ("no_effect", "memory.off", {})
COMPONENTS = ("text_encoder", "transformer", "vae")


@dataclass(slots=True)
class Site:
    """One pipeline under one profile.

    `device` computes. `scratch` is a folder for weights on disk, None when there is none. `refused` collects what
    could not be had while applying.
    """

    pipeline: ZImagePipeline
    profile: MemoryProfile
    device: torch.device
    scratch: Path | None = None
    refused: dict[str, Answer] = field(default_factory=dict)

    @property
    def accelerated(self) -> bool:
        """Whether there is a memory beside RAM."""
        return bool(self.device.type != "cpu")

    def refuse(self, switch: str, reason: str, **values: object) -> None:
        """Note that `switch` could not be had."""
        self.refused[switch] = ("refused", reason, values)

    def component(self, name: str) -> Any:
        """The live component `name`."""
        return getattr(self.pipeline, name)


def applied(reason: str, **values: object) -> Answer:
    """A switch that is at work."""
    return ("applied", reason, values)


def idle(reason: str, **values: object) -> Answer:
    """A switch that changes nothing here."""
    return ("no_effect", reason, values)


def blocks(transformer: nn.Module) -> list[ZImageTransformerBlock]:
    """Every block of the transformer, refiners included."""
    return [module for module in transformer.modules() if isinstance(module, ZImageTransformerBlock)]


def feed_forwards(transformer: nn.Module) -> list[FeedForward]:
    """Every feed-forward layer of the transformer."""
    return [module for module in transformer.modules() if isinstance(module, FeedForward)]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, not `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def why(error: BaseException) -> str:
    """The first line of what a library said."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
