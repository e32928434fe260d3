"""The A1111 "infotext": one string that nearly every image program reads.

Conventions: the prompt; optionally a line `Negative prompt: …`; a last line `Key: value, Key: value` with at least
three pairs. Values with `,`, `:` or a line break are JSON-quoted. CFG scale counts one more than diffusers'
guidance for Z-Image (`pos + g (pos - neg)`), and noise drawn on the CPU must be said (`RNG: CPU`).
"""

import json
import re

from zimage_studio.records.recipe import Recipe
from zimage_studio.records.request import GenerationRequest

_PAIR = re.compile(r'(\w[\w \-/]{1,60}):\s{0,8}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A1111's own pattern, with bounds, so that no text takes longer than its length."""
_NEGATIVE = "\nNegative prompt:"
OUR_NAME = "Z-Image Studio"
MIN_PAIRS = 3
MAX_PAIRS_CHARS = 100_000
_SURE = {"Steps", "Seed", "Sampler", "CFG scale", "Size", "Model"}


def to_infotext(recipe: Recipe) -> str:
    """The infotext of `recipe`."""
    request = recipe.request
    pairs: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": "Euler",
        "Schedule type": "Simple",
        "CFG scale": f"{request.guidance + 1:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": recipe.model.sha256[:10],
        "Model": recipe.model.name,
        "Shift": recipe.numerics.scheduler.get("shift"),
        "RNG": "CPU",
        **_refined(request),
        "Version": f"{OUR_NAME} {recipe.stack.get('studio', '')}".strip(),
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def _refined(request: GenerationRequest) -> dict[str, object]:
    """What is more than text and noise. A1111 has words for one variation, and none for several or for variety."""
    pairs: dict[str, object] = {"Denoising strength": request.strength, "Variety": request.variety or None}
    match request.variations:
        case (only,):
            pairs |= {"Variation seed": only.seed, "Variation seed strength": only.strength}
        case (_, _, *_):
            pairs["Variations"] = ", ".join(f"{link.seed} {link.strength}" for link in request.variations)
    return pairs


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def parse_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, pairs) of an infotext.

    As in A1111, a last line of fewer than three pairs belongs to the prompt; unless it holds nothing but keys that
    no prompt has, such as `Steps: 8, Seed: 5`, which other writers leave behind.
    """
    text = text.strip()
    before, _, last = text.rpartition("\n")
    pairs = _pairs(last)
    lines = f"\n{before if pairs else text}"
    prompt, _, negative = lines.partition(_NEGATIVE)
    if _NEGATIVE in negative:
        negative = re.sub(rf"{_NEGATIVE}[^\S\n]*", "\n", negative)
    return prompt.strip(), negative.strip(), pairs


def _pairs(line: str) -> dict[str, str]:
    if len(line) > MAX_PAIRS_CHARS:
        return {}
    pairs = {key.strip(): _unquoted(value) for key, value in _PAIR.findall(line)}
    if len(pairs) >= MIN_PAIRS:
        return pairs
    sure = pairs.keys() <= _SURE and line.startswith(next(iter(pairs), "\n"))
    return pairs if sure else {}


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except (ValueError, RecursionError):
            return value
    return value
