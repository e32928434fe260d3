"""One image from one request: noise, denoising, decoding, and the checks in between.

The drawing itself is diffusers' own `ZImagePipeline.__call__`, so that offloading hooks, quantised layers and
future fixes of diffusers apply unchanged. Studio adds the start noise, the previews, the stop and the checks.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImagePipeline
from numpy.typing import NDArray
from torch import Tensor

from zimage_studio.core.noise import start_noise
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.start_picture import fitted, started_latents
from zimage_studio.core.variety import loose_steps, loosened
from zimage_studio.errors import InvalidInputError, NonFiniteError
from zimage_studio.records.progress import Progress
from zimage_studio.records.recipe import Numerics
from zimage_studio.records.request import GenerationRequest

MAX_TOKENS = 512
TOKEN_STEP = 64
PREVIEW_EVERY_S = 0.15


@dataclass(frozen=True, slots=True)
class Sample:
    """What one request gave: pixels (H, W, 3) uint8, the hash of the final latent, and how it was computed."""

    pixels_HWC: NDArray[np.uint8]
    latents_sha256: str
    numerics: Numerics
    seconds: float

    @property
    def pixels_sha256(self) -> str:
        """Hash of the RGB bytes, row by row."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels_HWC).tobytes()).hexdigest()


def count_tokens(pipeline: ZImagePipeline, prompt: str) -> int:
    """Length of `prompt` inside the chat template, in tokens, untruncated."""
    templated = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return len(pipeline.tokenizer(templated).input_ids)


def sequence_length(pipeline: ZImagePipeline, request: GenerationRequest) -> int:
    """Padded text length: the smallest multiple of 64 that holds both prompts, at most 512.

    The padding is masked away before the transformer sees it (equal to 4e-9 whatever the length), so a short
    prompt need not cost a text encoder pass over 512 tokens. Raises InvalidInputError where plain diffusers
    would cut the prompt silently.
    """
    fields = {"prompt": request.prompt}
    if request.guidance > 0:
        fields["negative_prompt"] = request.negative_prompt
    counts = {name: count_tokens(pipeline, value) for name, value in fields.items()}
    for name, count in counts.items():
        if count > MAX_TOKENS:
            raise InvalidInputError("too_many_tokens", field=name, count=count, high=MAX_TOKENS)
    return -(-max(counts.values()) // TOKEN_STEP) * TOKEN_STEP


def fresh_scheduler(config: Mapping[str, Any], shift: float | None) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler of the model's own `config` without the last job's state, optionally with another time shift."""
    changes = {} if shift is None else {"shift": shift}
    return FlowMatchEulerDiscreteScheduler.from_config(dict(config), **changes)


@dataclass(slots=True)
class _Watch:
    """Follows the denoising loop from diffusers' step callback."""

    request: GenerationRequest
    progress: Progress
    to_rgb: LatentToRgb
    latents: Tensor
    true_embeds: list[Tensor] | None = None
    last_preview: float = field(default=0.0)

    def on_step(self, pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
        before, self.latents = self.latents, tensors["latents"]
        step = self.request.skipped_steps + index
        if not bool(torch.isfinite(self.latents).all()):
            raise NonFiniteError("not_finite", step=step + 1, steps=self.request.steps)
        preview = None
        now = time.monotonic()
        if now - self.last_preview >= PREVIEW_EVERY_S:
            self.last_preview = now
            preview = self.to_rgb.preview(clean_estimate(before, self.latents, pipeline.scheduler.sigmas, step))
        self.progress(index + 1, self.request.steps - self.request.skipped_steps, "note.denoising", preview)
        if self.true_embeds is not None and index + 1 == loose_steps(self.request):
            return {"prompt_embeds": self.true_embeds}
        return {}


def clean_estimate(before_1CHW: Tensor, after_1CHW: Tensor, sigmas: Tensor, index: int) -> Tensor:
    """The clean latent that the step from sigmas[index] to sigmas[index + 1] aimed at.

    Euler: after = before + (s1 - s0) v with v = noise - clean, and before = (1 - s0) clean + s0 noise;
    hence clean = after - s1 v.
    """
    s0, s1 = sigmas[index : index + 2].tolist()  # one wait for the device, not two
    velocity = (after_1CHW - before_1CHW.to(after_1CHW.device)) / (s1 - s0)
    return after_1CHW - s1 * velocity


def sample(
    pipeline: ZImagePipeline,
    request: GenerationRequest,
    *,
    scheduler_config: Mapping[str, Any],
    to_rgb: LatentToRgb,
    progress: Progress,
    source_HWC: NDArray[np.uint8] | None = None,
) -> Sample:
    """Draw one image.

    `scheduler_config` is the model's own, as loaded: the pipeline's present scheduler may be another job's.
    `progress` counts steps; raising Cancelled from it ends the work there and leaves the pipeline usable.
    `source_HWC` are the pixels of `request.source`, of any size.
    Raises InvalidInputError (prompt longer than 512 tokens), NonFiniteError (NaN or infinity in a latent or in
    the picture, or a picture of one single colour), torch.OutOfMemoryError.
    """
    if (source_HWC is None) != (request.source is None):
        raise ValueError("a start picture belongs to a request that names one, and to no other")
    started = time.perf_counter()
    progress(0, request.steps - request.skipped_steps, "note.encoding")
    length = sequence_length(pipeline, request)
    pipeline.scheduler = fresh_scheduler(scheduler_config, request.shift)
    noise = start_noise(request, pipeline.transformer.config.in_channels, pipeline.vae_scale_factor)
    watch = _Watch(request, progress, to_rgb, noise)
    try:
        call = pipeline
        call_words = _words(pipeline, request, length, watch)
        if source_HWC is not None:
            picture_HWC = fitted(source_HWC, request.width, request.height)
            watch.latents = started_latents(pipeline, request, noise, picture_HWC)
            call = ZImageImg2ImgPipeline(**pipeline.components)
            call.set_progress_bar_config(disable=True)
            call_words |= {"image": picture_HWC.astype(np.float32)[None] / 255, "strength": request.strength}
        output = call(
            **call_words,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            latents=watch.latents,
            max_sequence_length=length,
            output_type="np",
            callback_on_step_end=watch.on_step,
            callback_on_step_end_tensor_inputs=["latents"],
        )
    finally:
        pipeline.maybe_free_model_hooks()  # skipped by diffusers when the callback raises
    picture_HWC = output.images[0]
    if not np.isfinite(picture_HWC).all():
        raise NonFiniteError("not_finite", step=request.steps, steps=request.steps)
    pixels_HWC = (picture_HWC * 255).round().astype(np.uint8)
    if (pixels_HWC == pixels_HWC[:1, :1]).all():
        raise NonFiniteError("flat_image")
    latents = watch.latents.detach().to("cpu", torch.float32).contiguous().numpy()
    return Sample(
        pixels_HWC=pixels_HWC,
        latents_sha256=hashlib.sha256(latents.tobytes()).hexdigest(),
        numerics=numerics(pipeline, length, watch.latents.device),
        seconds=round(time.perf_counter() - started, 3),
    )


def _words(pipeline: ZImagePipeline, request: GenerationRequest, length: int, watch: _Watch) -> dict[str, Any]:
    """The prompts as the pipeline takes them: as text, or with variety as embeddings, loosened for the first steps."""
    if request.variety == 0:
        return {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    with torch.no_grad():
        embeds, negative_embeds = pipeline.encode_prompt(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            do_classifier_free_guidance=request.guidance > 0,
            max_sequence_length=length,
        )
    watch.true_embeds = embeds
    loose = [loosened(embed, request) for embed in embeds]
    return {"prompt_embeds": loose, "negative_prompt_embeds": negative_embeds}


def numerics(pipeline: ZImagePipeline, length: int, device: torch.device) -> Numerics:
    """How the arithmetic of the call just made, on `device`, was done, read from the live pipeline."""
    scheduler = pipeline.scheduler
    return Numerics(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtypes={
            name: str(getattr(pipeline, name).dtype).removeprefix("torch.")
            for name in ("text_encoder", "transformer", "vae")
        },
        attention_backend=_attention_backend(pipeline),
        memory={},
        scheduler={"class": type(scheduler).__name__, **_plain(scheduler.config)},
        sigmas=tuple(round(float(sigma), 8) for sigma in scheduler.sigmas),
        sequence_length=length,
    )


def _attention_backend(pipeline: ZImagePipeline) -> str:
    backend = pipeline.transformer.layers[0].attention.processor._attention_backend
    return "native" if backend is None else str(getattr(backend, "value", backend))


def _plain(config: Any) -> dict[str, object]:
    """The public, JSON-ready part of a diffusers config."""
    return {
        k: v
        for k, v in dict(config).items()
        if not k.startswith("_") and isinstance(v, bool | int | float | str | None)
    }
