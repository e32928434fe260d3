"""InvokeAI, SwarmUI and Fooocus: flat JSON, one table of names each."""

import math
import re
from collections.abc import Mapping

from zimage_studio.core.metadata.findings import Findings, number, shown

_RESOLUTION = re.compile(r"\D{0,3}(\d{1,6})\D{1,6}(\d{1,6})\D{0,3}", re.ASCII)
_SWARM_ROOT = "sui_image_params"
_FOOOCUS_SIGNS = {"base_model", "metadata_scheme", "full_prompt", "adm_guidance", "performance"}


def read_swarmui(data: Mapping[str, object], found: Findings) -> bool:
    """SwarmUI's `sui_image_params`. Its values may be texts; its noise comes from ComfyUI, drawn on the CPU."""
    params = data.get(_SWARM_ROOT)
    if not isinstance(params, dict):
        return False
    rest = dict(params)
    found.text("prompt", "prompt", rest.pop("prompt", None))
    found.text("negative_prompt", "negativeprompt", rest.pop("negativeprompt", None))
    _take(found, rest, {"seed": "seed", "sigmashift": "shift"})
    _steps_and_scale(found, rest, "cfgscale")
    _sides(found, rest)
    found.model(rest.pop("model", None))
    found.sampler("sampler", rest.pop("sampler", None))
    found.scheduler("scheduler", rest.pop("scheduler", None))
    _list(found, rest)
    _list(found, {key: value for key, value in data.items() if key != _SWARM_ROOT})
    return True


def read_invokeai(data: Mapping[str, object], found: Findings) -> bool:
    """InvokeAI's `invokeai_metadata`.

    For Z-Image it draws float32 noise on the CPU and rounds it to the model's type, and computes the shift from the
    size unless `z_image_shift` is there (invokeai/app/invocations/z_image_denoise.py).
    """
    if not data.keys() & {"positive_prompt", "generation_mode", "app_version"}:
        return False
    rest = dict(data)
    found.text("prompt", "positive_prompt", rest.pop("positive_prompt", None))
    found.text("negative_prompt", "negative_prompt", rest.pop("negative_prompt", None))
    _take(found, rest, {"seed": "seed", "z_image_shift": "shift"})
    _steps_and_scale(found, rest, "cfg_scale")
    _sides(found, rest)
    model = rest.get("model")
    if isinstance(model, dict):
        found.model(model.get("name"))
    found.sampler("scheduler", rest.pop("scheduler", None))
    _invoke_noise(found, rest)
    _list(found, rest)
    return True


def _invoke_noise(found: Findings, rest: dict[str, object]) -> None:
    mode = rest.get("generation_mode")
    is_z_image = isinstance(mode, str) and mode.startswith("z_image")
    device = rest.pop("rand_device", None)
    if device not in (None, "cpu"):
        found.leave("rand_device", device)
        found.note("noise", device, None, "meta.noise_other")
    elif is_z_image:
        found.note("noise", "cpu", None, "meta.noise_rounded")
    width, height = found.recipe.get("width"), found.recipe.get("height")
    if is_z_image and "shift" not in found.recipe and isinstance(width, int) and isinstance(height, int):
        found.note("shift", None, None, "meta.invoke_shift", value=f"{_invoke_shift(width, height):.3f}")


def _invoke_shift(width: int, height: int) -> float:
    """exp(mu), mu linear in the number of image tokens: 0.5 at 256, 1.15 at 4096."""
    tokens = (width // 16) * (height // 16)
    return math.exp(0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256))


def read_fooocus(data: Mapping[str, object], found: Findings, *, scheme: str = "") -> bool:
    """Fooocus' own scheme, as JSON. Its styles add to the prompt: that text stands in `full_prompt`."""
    if scheme != "fooocus" and len(data.keys() & _FOOOCUS_SIGNS) < 2:
        return False
    rest = dict(data)
    found.text("prompt", "prompt", rest.pop("prompt", None))
    found.text("negative_prompt", "negative_prompt", rest.pop("negative_prompt", None))
    _take(found, rest, {"seed": "seed"})
    _steps_and_scale(found, rest, "guidance_scale")
    size = _RESOLUTION.fullmatch(shown(rest.get("resolution", ""))[:40])
    if size:
        found.size("resolution", size[1], size[2])
        del rest["resolution"]
    found.model(rest.pop("base_model", None))
    found.sampler("sampler", rest.pop("sampler", None))
    found.scheduler("scheduler", rest.pop("scheduler", None))
    _list(found, rest)
    return True


def _take(found: Findings, rest: dict[str, object], fields: Mapping[str, str]) -> None:
    for key, field in fields.items():
        if (value := rest.pop(key, None)) is not None:
            found.take(field, key, value)


def _steps_and_scale(found: Findings, rest: dict[str, object], scale_key: str) -> None:
    if (steps := rest.pop("steps", None)) is not None:
        version = rest.get("diffusers", rest.get("diffusers_version"))
        found.steps("steps", _whole(steps), diffusers=version)
    if (scale := rest.pop(scale_key, None)) is not None:
        found.cfg_scale(scale_key, scale)


def _whole(value: object) -> object:
    """SwarmUI may write a whole number as "8.0"."""
    as_number = number(value)
    return int(as_number) if isinstance(as_number, float) and as_number.is_integer() else value


def _sides(found: Findings, rest: dict[str, object]) -> None:
    if "width" in rest and "height" in rest:
        found.size("width x height", _whole(rest.pop("width")), _whole(rest.pop("height")))


def _list(found: Findings, rest: Mapping[str, object]) -> None:
    for key, value in rest.items():
        found.leave(key, value)
