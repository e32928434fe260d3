"""A1111, Forge and SD.Next: the infotext in `parameters` or in a UserComment."""

import re

from zimage_studio.core.metadata.findings import Findings, number
from zimage_studio.core.metadata.infotext import MIN_PAIRS, OUR_NAME, parse_infotext

_SHIFT_KEYS = ("Shift", "Sampler shift")
_LORA = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>")
_NOT_HERE = {
    "Denoising strength": "meta.second_pass",
    "Hires upscale": "meta.second_pass",
    "Variation seed": "meta.variation",
    "Variations": "meta.variation",
    "Lora hashes": "meta.lora",
    "Clip skip": "meta.no_effect",
}


def read_infotext(text: str, found: Findings) -> bool:
    """Take over what the infotext says; False when it is no infotext."""
    prompt, negative, pairs = parse_infotext(text)
    if not pairs:
        return False
    if len(pairs) < MIN_PAIRS:
        found.note("parameters", len(pairs), None, "meta.few_pairs")
    take_texts(found, prompt, negative)
    take_pairs(found, pairs)
    return True


def take_texts(found: Findings, prompt: str, negative: str) -> None:
    """Both prompts; LoRA marks inside are named, as nothing here reads them."""
    found.text("prompt", "prompt", prompt)
    found.text("negative_prompt", "Negative prompt", negative)
    for mark in dict.fromkeys(_LORA.findall(prompt)[:20]):
        found.note("prompt", mark, None, "meta.lora")


def take_pairs(found: Findings, pairs: dict[str, str], *, noise_known: bool = True) -> None:
    """The pairs of the last line; what is not ours is listed under its own name.

    `noise_known`: the program is of the family that leaves out RNG when the noise was drawn on the GPU.
    """
    rest = dict(pairs)
    by_diffusers = "SD.Next" in pairs.get("App", "") or "ZImagePipeline" in pairs.get("Pipeline", "")
    if (steps := rest.pop("Steps", None)) is not None:
        version = rest.get("diffusers", rest.get("Diffusers"))
        found.steps("Steps", steps, diffusers=version, by_diffusers=by_diffusers)
    if (seed := rest.pop("Seed", None)) is not None:
        found.take("seed", "Seed", seed)
    if (scale := rest.pop("CFG scale", None)) is not None:
        if "ZImagePipeline" in pairs.get("Pipeline", ""):
            _diffusers_scale(found, scale)
        else:
            found.cfg_scale("CFG scale", scale)
    if (size := rest.pop("Size", None)) is not None:
        width, _, height = size.lower().replace("×", "x").partition("x")
        found.size("Size", width.strip(), height.strip())
    for key in _SHIFT_KEYS:
        if key in rest and "shift" not in found.recipe:
            found.take("shift", key, rest.pop(key))
    found.model(rest.pop("Model", None))
    found.sampler("Sampler", rest.pop("Sampler", None))
    schedule = "Schedule type" if "Schedule type" in rest else "Scheduler"
    found.scheduler(schedule, rest.pop(schedule, None))
    _noise(found, rest, known=noise_known and not by_diffusers)
    _refined(found, rest)
    for key, value in rest.items():
        found.leave(key, value)
        if key in _NOT_HERE:
            found.note(key, value, None, _NOT_HERE[key])


def _refined(found: Findings, rest: dict[str, str]) -> None:
    """A variation with its strength, unless its noise was drawn for another size; the variety that Studio writes."""
    if "Variety" in rest and rest.get("Version", "").startswith(OUR_NAME):
        found.take("variety", "Variety", rest.pop("Variety"))
    if {"Variation seed", "Variation seed strength"} <= rest.keys() and "Seed resize from" not in rest:
        found.variation(rest.pop("Variation seed"), rest.pop("Variation seed strength"))


def _diffusers_scale(found: Findings, scale: str) -> None:
    """SD.Next hands its CFG scale to diffusers as guidance, and writes 1 for all values up to 1."""
    if number(scale) == 1.0:
        found.leave("CFG scale", scale)
        found.note("guidance", scale, None, "meta.cfg_up_to_one")
    elif found.take("guidance", "CFG scale", scale):
        found.note("guidance", scale, found.recipe["guidance"], "meta.cfg_diffusers")


def _noise(found: Findings, rest: dict[str, str], *, known: bool) -> None:
    """Where the noise was drawn: A1111 leaves the key out when that was the GPU."""
    rng = rest.pop("RNG", None)
    if rng == "CPU":
        found.note("noise", rng, "cpu", "meta.same")
    elif rng is not None:
        found.leave("RNG", rng)
        found.note("noise", rng, None, "meta.noise_other")
    else:
        found.note("noise", None, None, "meta.noise_gpu" if known else "meta.noise_unknown")
