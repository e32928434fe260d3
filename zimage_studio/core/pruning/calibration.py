"""What a model is measured with: the states of its own pictures, made by itself from prompts and seeds.

No data set is needed, and what is measured is what the model meets when it draws. Shapes: B states (pictures x steps),
C latent channels, H x W latent pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from zimage_studio.core.recovery.trajectories import Point, Sampler, follow
from zimage_studio.core.recovery.velocity import Velocity
from zimage_studio.core.sampling import MAX_TOKENS, TOKEN_STEP, count_tokens
from zimage_studio.errors import InvalidInputError, NonFiniteError
from zimage_studio.records.progress import Progress, silent

CAPTION_STEP = 32
"""diffusers fills captions up to a multiple of this."""
MAX_SIDE_PX = 512
"""Larger pictures tell the same about the weights and cost more."""
DEFAULT_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """States of pictures under way.

    `time_B` runs from 0 (noise) to 1 (image), as the transformer takes it. `latents_BCHW` are the states of the
    sampler, `velocity_BCHW` what the model itself predicts there, without guidance: the teacher's answer. Its own
    pictures are also data to train on: `target_BCHW` is finished picture minus noise, the target of flow matching
    (arXiv:2210.02747) at `straight`. `step_B` numbers the steps of the sampler, `captions` are embeddings (tokens,
    width) one a state.
    """

    latents_BCHW: Tensor
    time_B: Tensor
    captions: list[Tensor]
    velocity_BCHW: Tensor
    target_BCHW: Tensor
    noise_BCHW: Tensor
    step_B: Tensor

    def __len__(self) -> int:
        return len(self.time_B)

    @property
    def straight(self) -> "Batch":
        """The same times on the straight line from noise to picture, where `target_BCHW` is the true velocity."""
        time_B111 = self.time_B[:, None, None, None]
        return replace(self, latents_BCHW=self.noise_BCHW + time_B111 * self.target_BCHW)

    def part(self, rows: slice | list[int]) -> "Batch":
        """Some of the states."""
        chosen = list(range(len(self)))[rows] if isinstance(rows, slice) else rows
        names = ("latents_BCHW", "time_B", "velocity_BCHW", "target_BCHW", "noise_BCHW", "step_B")
        tensors = {name: getattr(self, name)[chosen] for name in names}
        return Batch(captions=[self.captions[row] for row in chosen], **tensors)

    def parts(self, size: int) -> Iterator["Batch"]:
        """All states, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.part(slice(start, start + size))

    def finite(self) -> bool:
        """Whether the model kept its numbers on all states."""
        return bool(torch.isfinite(self.latents_BCHW).all() and torch.isfinite(self.velocity_BCHW).all())


class Predictor:
    """Velocities of one transformer, clean minus noise, float32, whatever hooks a memory profile has put on it.

    The batched forward where nothing hangs on the transformer itself, else diffusers' own (`official` asks for it).
    """

    def __init__(self, transformer: ZImageTransformer2DModel, *, official: bool = False) -> None:
        self._transformer = transformer
        self._official = official or _hooked(transformer)
        dtype = transformer.dtype
        self._velocity = Velocity(transformer, None if dtype == torch.float32 else dtype)

    def __call__(self, latents_BCHW: Tensor, time_B: Tensor, captions: list[Tensor]) -> Tensor:
        """(B, C, H, W). `time_B` runs from 0 (noise) to 1."""
        if not self._official:
            return self._velocity(latents_BCHW, 1 - time_B, captions)
        out = torch.empty_like(latents_BCHW, dtype=torch.float32)
        lengths = [-(-len(caption) // CAPTION_STEP) for caption in captions]
        for length in dict.fromkeys(lengths):  # of one length, so that no picture has padding of another
            rows = [row for row, found in enumerate(lengths) if found == length]
            part = self._own(latents_BCHW[rows], time_B[rows], [captions[row] for row in rows])
            out = out.index_put((torch.tensor(rows),), part.to(out.device))
        return out

    def _own(self, latents_BCHW: Tensor, time_B: Tensor, captions: list[Tensor]) -> Tensor:
        model = self._transformer
        device = getattr(getattr(model, "_hf_hook", None), "execution_device", None) or model.device
        pictures = list(latents_BCHW.to(device, model.dtype).unsqueeze(2).unbind())
        words = [caption.to(device, model.dtype) for caption in captions]
        listed = model(pictures, time_B.to(device, torch.float32), words, return_dict=False)[0]
        return torch.stack(listed).squeeze(2).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ways:
    """How B pictures are drawn: each from its noise and its words, by one sampler."""

    prompts: tuple[str, ...]
    sampler: Sampler
    noise_BCHW: Tensor
    captions: list[Tensor]
    wordless: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def parts(self, size: int) -> Iterator["Ways"]:
        """All pictures, at most `size` at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield replace(
                self, prompts=self.prompts[rows], noise_BCHW=self.noise_BCHW[rows], captions=self.captions[rows]
            )

    def follow(self, predict: Predictor) -> Iterator[Point]:
        """Every step, then the finished latents."""
        points: Iterator[Point] = follow(
            lambda latents, sigma_B, captions: predict(latents, 1 - sigma_B, captions),
            self.sampler, self.noise_BCHW, self.captions, self.wordless,
        )  # fmt: skip
        return points


def ways(
    pipeline: ZImagePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = DEFAULT_STEPS,
    *,
    size: tuple[int, int] | None = None,
    guidance: float = 0.0,
) -> Ways:
    """One picture of each prompt, seed i with prompt i (seeds are used in turn).

    `size` is (width, height) in px, the model's own up to 512 px when None. Raises InvalidInputError (no prompt, a
    prompt of more than 512 tokens).
    """
    if not prompts or not seeds:
        raise InvalidInputError("calibration_no_prompts", field="prompts", criterion="calibration")
    width, height = size or default_size(pipeline)
    factor = pipeline.vae_scale_factor * 2
    shape = (1, pipeline.transformer.config.in_channels, height // factor * 2, width // factor * 2)
    *embeds, wordless = caption_embeds(pipeline, [*prompts, ""])
    noise = [
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
        for seed in (seeds[turn % len(seeds)] + turn // len(seeds) for turn in range(len(prompts)))
    ]
    sampler = Sampler(dict(pipeline.scheduler.config), steps, guidance, shape[2] // 2 * (shape[3] // 2))
    return Ways(
        prompts=tuple(prompts), sampler=sampler, noise_BCHW=torch.cat(noise), captions=embeds, wordless=wordless
    )


def states_of(transformer: ZImageTransformer2DModel, drawn: Ways, progress: Progress = silent) -> Batch:
    """The states of every picture at every step; guidance steers the way, never the recorded velocity.

    Equal arguments give equal states. Raises NonFiniteError, Cancelled.
    """
    predict = Predictor(transformer)
    found: list[Batch] = []
    for turn, way in enumerate(drawn.parts(1)):
        progress(turn, len(drawn), "note.calibrating")
        states = _states(list(way.follow(predict)), way.noise_BCHW, way.captions[0])
        if not states.finite():
            raise NonFiniteError("calibration_not_finite", value=way.prompts[0][:80])
        found.append(states)
    progress(len(drawn), len(drawn), "note.calibrating")
    return joined(found)


def _states(points: list[Point], noise_1CHW: Tensor, caption: Tensor) -> Batch:
    steps, clean_1CHW = points[:-1], points[-1].latents_BCHW.cpu()
    count = len(steps)
    return Batch(
        latents_BCHW=torch.cat([point.latents_BCHW.cpu() for point in steps]),
        time_B=torch.tensor([1 - point.sigma for point in steps]),
        captions=[caption] * count,
        velocity_BCHW=torch.cat([point.velocity_BCHW.cpu() for point in steps]),
        target_BCHW=(clean_1CHW - noise_1CHW).expand(count, -1, -1, -1),
        noise_BCHW=noise_1CHW.expand(count, -1, -1, -1),
        step_B=torch.arange(count),
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """All states of several sets."""
    names = ("latents_BCHW", "time_B", "velocity_BCHW", "target_BCHW", "noise_BCHW", "step_B")
    tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    return Batch(captions=[caption for batch in batches for caption in batch.captions], **tensors)


def default_size(pipeline: ZImagePipeline) -> tuple[int, int]:
    """(width, height) in px: what the VAE was made for, up to 512 px."""
    side = min(int(pipeline.vae.config.sample_size), MAX_SIDE_PX)
    return side, side


@torch.no_grad()  # type: ignore[untyped-decorator]
def caption_embeds(pipeline: ZImagePipeline, prompts: Sequence[str]) -> list[Tensor]:
    """(tokens, width) float32 on the CPU of each prompt. Raises InvalidInputError above 512 tokens."""
    embeds: list[Tensor] = []
    for prompt in prompts:
        count = count_tokens(pipeline, prompt)
        if count > MAX_TOKENS:
            raise InvalidInputError("too_many_tokens", field="prompts", count=count, high=MAX_TOKENS)
        length = -(-count // TOKEN_STEP) * TOKEN_STEP
        (embed,), _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=length)
        embeds.append(embed.float().cpu())
    return embeds


def _hooked(transformer: ZImageTransformer2DModel) -> bool:
    """Whether something must run when the transformer itself is called, as offloading does."""
    names = ("_hf_hook", "_diffusers_hook")
    return any(hasattr(transformer, name) for name in names) or transformer.x_pad_token.device.type == "meta"
