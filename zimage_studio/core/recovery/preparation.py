"""What the frozen parts say about the data, computed once and kept on disk: latents, caption embeddings, trajectories.

Text encoder, VAE and teacher are in memory one after the other, each only while it is asked. A second start takes up
where the first was stopped; when everything is there, the data set itself is no longer looked at.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from zimage_studio.core.loading import load_component
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.recovery.pictures import Picture, check_sizes, read_pictures
from zimage_studio.core.recovery.store import TensorStore, write_text
from zimage_studio.core.recovery.trajectories import Sampler, follow
from zimage_studio.core.recovery.velocity import Velocity
from zimage_studio.core.sampling import MAX_TOKENS, TOKEN_STEP, count_tokens
from zimage_studio.core.weight_headers import read_json
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.progress import Progress, silent
from zimage_studio.records.recover import RecoveryConfig

INDEX = "index.json"
MAX_DRAWN = 1536
"""Half a minute of one busy core; each is seen with other noise every time."""
CAPTIONS_AT_ONCE, PICTURES_AT_ONCE, TRAJECTORIES_AT_ONCE = 32, 16, 8
WORDLESS = 0
"""The number of the empty caption."""


@dataclass(frozen=True, slots=True)
class Index:
    """What is in the cache. Numbers of captions: of each picture, of each trajectory, and of the samples."""

    width: int
    height: int
    pictures: list[list[int]]
    held_out: list[int]
    trajectories: list[int]
    samples: list[int]
    captions: list[str]
    names: list[str]

    @property
    def trained(self) -> list[int]:
        """The pictures that are trained on: all but the held-out ones, or all when there is only one."""
        kept = set(self.held_out)
        return [number for number in range(len(self.pictures)) if number not in kept] or self.held_out


class Prepared:
    """The cache of one job: its index, and tensors read from disk when they are used."""

    def __init__(self, folder: Path, index: Index, sampler: Sampler) -> None:
        self.index, self.sampler = index, sampler
        self._captions = TensorStore(folder / "captions")
        self._latents = TensorStore(folder / "latents")
        self._points = TensorStore(folder / "trajectories", TRAJECTORIES_AT_ONCE)

    def caption(self, number: int) -> Tensor:
        """(tokens, width) of a caption."""
        return self._captions.get(number, "embeds").float()

    def latents(self, number: int) -> Tensor:
        """(C, h, w) float32 of a picture."""
        return self._latents.get(number, "latents").float()

    def point(self, trajectory: int, step: int, *, worded: bool) -> tuple[float, Tensor, Tensor]:
        """Noise level, latents and the teacher's velocity at one step of a trajectory."""
        sigma = float(self._points.get(trajectory, "sigmas")[step])
        which = "velocity" if worded else "wordless"
        return sigma, self._points.get(trajectory, f"latents{step}"), self._points.get(trajectory, f"{which}{step}")


def prepare(
    folder: Path,
    student: Path,
    teacher: Path | None,
    config: RecoveryConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = silent,
) -> Prepared:
    """Fill the cache below `folder`, or take what is there. Raises InvalidInputError, ModelError, Cancelled."""
    facts = inspect_folder(student)
    width = config.size or facts.defaults.width
    height = config.size or facts.defaults.height
    scheduler = read_json(student / "scheduler" / "scheduler_config.json")
    steps = facts.defaults.steps
    factor = 2 ** len(read_json(student / "vae" / "config.json")["block_out_channels"])  # a token is 2x2 latents
    sampler = Sampler(scheduler, steps, facts.defaults.guidance, width // factor * (height // factor))
    path = folder / INDEX
    if path.is_file():
        return Prepared(folder, Index(**json.loads(path.read_text(encoding="utf-8"))), sampler)
    pictures = _pictures(config, (width, height))
    index = _index(config, pictures, (width, height))
    _encode_pictures(folder / "latents", student, pictures, index, device, progress)
    _encode_captions(folder / "captions", student, index, device, dtype, progress)
    prepared = Prepared(folder, index, sampler)
    if config.uses_teacher and teacher is not None:
        shape = (facts.geometry.channels, height * 2 // factor, width * 2 // factor)
        _follow_teacher(folder / "trajectories", teacher, prepared, shape, config, device, dtype, progress)
    write_text(path, json.dumps(asdict(index), ensure_ascii=False))
    return prepared


def number_from(*parts: object) -> int:
    """A seed for one purpose, decided by `parts` alone: what is drawn depends on nothing that ran before."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "little")


def generator_from(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `number_from(*parts)`."""
    return torch.Generator().manual_seed(number_from(*parts))


# --- which pictures and captions ------------------------------------------------------------------------------------


def _pictures(config: RecoveryConfig, size: tuple[int, int]) -> list[Picture]:
    if not config.data_set:
        return []
    needed = MAX_DRAWN if config.steps is None else config.steps * config.batch * config.accumulation
    pictures = read_pictures(
        config.data_set, size, drawn=min(needed, MAX_DRAWN), held_out=config.held_out, seed=config.seed
    )
    check_sizes(pictures, size)
    return pictures


def _index(config: RecoveryConfig, pictures: list[Picture], size: tuple[int, int]) -> Index:
    numbers: dict[str, int] = {"": WORDLESS}

    def number(said: str) -> int:
        return numbers.setdefault(said, len(numbers))

    said = [[number(caption) for caption in picture.captions] for picture in pictures]
    held = [place for place, picture in enumerate(pictures) if picture.held_out] or list(range(len(pictures)))
    prompts = [number(prompt) for prompt in config.prompts]
    heard = prompts or [captions[0] for place, captions in enumerate(said) if not pictures[place].held_out]
    count = config.trajectories if config.uses_teacher else 0
    return Index(
        width=size[0], height=size[1], pictures=said, held_out=held if pictures else [],
        trajectories=[heard[turn % len(heard)] for turn in range(count)] if heard else [],
        samples=(prompts or [said[place][0] for place in held])[: config.samples],
        captions=list(numbers), names=[picture.name for picture in pictures],
    )  # fmt: skip


# --- asking the frozen parts ----------------------------------------------------------------------------------------


@torch.no_grad()  # type: ignore[untyped-decorator]
def _encode_captions(
    folder: Path, student: Path, index: Index, device: torch.device, dtype: torch.dtype, progress: Progress
) -> None:
    store, count = TensorStore(folder), len(index.captions)
    missing = store.missing(count)
    if not missing:
        return
    load = _loader(student, device, dtype)
    speaker = ZImagePipeline(
        scheduler=None, vae=None, text_encoder=load("text_encoder"), tokenizer=load("tokenizer"), transformer=None
    )
    lengths = [_tokens(speaker, text, index) for text in index.captions]
    for run in missing:
        entries: list[dict[str, Tensor]] = []
        for start in range(run.start, run.stop, CAPTIONS_AT_ONCE):
            part = range(start, min(run.stop, start + CAPTIONS_AT_ONCE))
            longest = -(-max(lengths[number] for number in part) // TOKEN_STEP) * TOKEN_STEP
            texts = [index.captions[number] for number in part]
            embeds, _ = speaker.encode_prompt(
                texts, device=device, do_classifier_free_guidance=False, max_sequence_length=longest
            )
            entries += [{"embeds": embed} for embed in embeds]
            progress(part.stop, count, "note.recover_captions")
        store.write(run, entries)


def _tokens(speaker: ZImagePipeline, text: str, index: Index) -> int:
    count = count_tokens(speaker, text)
    if count > MAX_TOKENS:
        number = index.captions.index(text)
        named = (name for name, said in zip(index.names, index.pictures, strict=True) if number in said)
        raise InvalidInputError(
            "data_too_many_tokens", field="data_set", value=next(named, text), count=count, high=MAX_TOKENS
        )
    return count


def _loader(folder: Path, device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
    return lambda component: load_component(folder, component, device=device, dtype=dtype, progress=silent)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _encode_pictures(
    folder: Path, student: Path, pictures: Sequence[Picture], index: Index, device: torch.device, progress: Progress
) -> None:
    store = TensorStore(folder)
    missing = store.missing(len(pictures))
    if not missing:
        return
    vae = _loader(student, device, torch.float32)("vae")
    for run in missing:
        entries: list[dict[str, Tensor]] = []
        for start in range(run.start, run.stop, PICTURES_AT_ONCE):
            part = pictures[start : min(run.stop, start + PICTURES_AT_ONCE)]
            pixels = [torch.from_numpy(picture.read(index.width, index.height).copy()) for picture in part]
            x_BCHW = torch.stack(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
            mean = vae.encode(x_BCHW).latent_dist.mode()
            latents = (mean - vae.config.shift_factor) * vae.config.scaling_factor
            entries += [{"latents": latent} for latent in latents]
            progress(start + len(part), len(pictures), "note.recover_pictures")
        store.write(run, entries)


def _follow_teacher(
    folder: Path,
    teacher: Path,
    prepared: Prepared,
    shape: tuple[int, int, int],
    config: RecoveryConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> None:
    """The teacher draws; where it was and what it said at each step goes to disk."""
    index = prepared.index
    store, count = TensorStore(folder, TRAJECTORIES_AT_ONCE), len(index.trajectories)
    missing = store.missing(count)
    if not missing:
        return
    predict = Velocity(_loader(teacher, device, dtype)("transformer"), dtype if dtype != torch.float32 else None)
    wordless = prepared.caption(WORDLESS)
    for run in missing:
        noise = torch.stack([torch.randn(shape, generator=generator_from(config.seed, "teacher", n)) for n in run])
        captions = [prepared.caption(index.trajectories[number]) for number in run]
        entries: list[dict[str, Tensor]] = [{} for _ in run]
        sigmas: list[float] = []
        for step, point in enumerate(follow(predict, prepared.sampler, noise, captions, wordless)):
            if point.sigma == 0:
                break
            sigmas.append(point.sigma)
            for place, entry in enumerate(entries):
                entry[f"latents{step}"] = point.latents_BCHW[place].clone()
                entry[f"velocity{step}"] = point.velocity_BCHW[place].clone()
                if point.wordless_BCHW is not None:
                    entry[f"wordless{step}"] = point.wordless_BCHW[place].clone()
        store.write(run, [{**entry, "sigmas": torch.tensor(sigmas)} for entry in entries])
        progress(run.stop, count, "note.recover_teacher")
