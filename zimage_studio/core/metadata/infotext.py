"""The A1111 "infotext": one string that nearly every image program reads.

Conventions: the prompt; optionally a line `Negative prompt: …`; a last line `Key: value, Key: value` with at least
three pairs. Values with `,`, `:` or a line break are JSON-quoted. CFG scale counts one more than diffusers'
guidance for Z-Image (`pos + g (pos - neg)`), and noise drawn on the CPU must be said (`RNG: CPU`).
"""

import json
import re

from zimage_studio.records.recipe import Recipe

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MIN_PAIRS = 3


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
        "Version": f"Z-Image Studio {recipe.stack.get('studio', '')}".strip(),
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def parse_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, pairs) of an infotext; no pairs when the last line holds fewer than three."""
    lines = text.strip().split("\n")
    pairs = {key.strip(): _unquoted(value) for key, value in _PAIR.findall(lines[-1])}
    if len(pairs) < MIN_PAIRS:
        pairs = {}
    else:
        lines = lines[:-1]
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in lines:
        if line.startswith("Negative prompt:"):
            into = negative
            line = line.removeprefix("Negative prompt:").lstrip()
        into.append(line)
    return "\n".join(prompt).strip(), "\n".join(negative).strip(), pairs


def _unquoted(value: str) -> str:
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value.strip()
