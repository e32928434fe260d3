"""A fresh tiny pipeline per test, and what makes one equal to another."""

import hashlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffusers import ZImagePipeline


@pytest.fixture
def pipeline() -> "ZImagePipeline":
    """A pipeline of 0.7 million random parameters that the test may change."""
    from tests import tiny_random

    pipe = tiny_random.pipeline()
    pixels(pipe)  # transformers hooks the text encoder at its first use
    return pipe


@pytest.fixture(scope="session")
def expected(random_pipeline: "ZImagePipeline") -> str:
    """The pixels of the tiny pipeline under no profile."""
    return pixels(random_pipeline)


def pixels(pipe: "ZImagePipeline", prompt: str = "a red fish, 红色的鱼", guidance: float = 2.0, side: int = 64) -> str:
    """sha256 of one image in float."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        prompt, height=side, width=side, num_inference_steps=2, guidance_scale=guidance, max_sequence_length=128,
        generator=torch.Generator().manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    return hashlib.sha256(picture.tobytes()).hexdigest()


def everything(pipe: "ZImagePipeline") -> dict[str, object]:
    """All that a switch may touch: objects, hooks, flags, dtypes, and every bit of every weight."""
    found: dict[str, object] = {"accelerate": list(getattr(pipe, "_all_hooks", []))}
    for component in ("text_encoder", "transformer", "vae"):
        for name, module in getattr(pipe, component).named_modules():
            place = f"{component}.{name}"
            found[place] = (
                id(module),
                id(getattr(module, "processor", None)),
                sorted(key for key in vars(module) if key in ("forward", "_diffusers_hook", "_hf_hook")),
                [len(module._forward_pre_hooks), len(module._forward_hooks), module._compiled_call_impl],
                [getattr(module, flag, None) for flag in ("gradient_checkpointing", "use_tiling", "use_slicing")],
                [getattr(module, side, None) for side in ("tile_sample_min_size", "tile_latent_min_size")],
            )
        for name, tensor in getattr(pipe, component).state_dict().items():
            digest = hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(dtype_bytes()).numpy().tobytes())
            found[f"{component}.{name} bits"] = (str(tensor.dtype), str(tensor.device), digest.hexdigest())
    return found


def dtype_bytes() -> object:
    import torch

    return torch.uint8
