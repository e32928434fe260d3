"""What Z-Image's geometry needs, from shapes alone: parameters, bytes, arithmetic, foretold memory."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.geometry import Geometry
from zimage_studio.core.memory.estimate import Estimator
from zimage_studio.core.memory.shapes import Shapes, component_bytes
from zimage_studio.core.memory.site import COMPONENTS
from zimage_studio.core.memory.switches_vae import factor
from zimage_studio.records.memory import EXACT, PRESETS, Estimate, MemoryProfile

GB, TERA = 1e9, 1e12
SHORT_TEXT, LONG_TEXT = 64, 512
STORED: Mapping[str, MemoryProfile] = {
    "float32": EXACT,
    "bfloat16": EXACT,
    "fp8 storage": PRESETS["fp8_storage"],
    "int8": PRESETS["int8"],
    "int4": PRESETS["int4"],
}
"""Ways to keep the weights; all but the first beside bfloat16."""


def all_in(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """`dtype` for every component."""
    return dict.fromkeys(COMPONENTS, dtype)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def forward_flops(shapes: Shapes, width: int, height: int, tokens: int) -> int:
    """Floating-point operations of one forward of the transformer, two for a multiplication with addition.

    `tokens` is the length of the text; the transformer pads it to a multiple of 32.
    """
    transformer, cell = shapes.transformer, factor(shapes.vae)
    dtype, caption = transformer.dtype, transformer.config.cap_feat_dim
    noisy = [torch.empty(transformer.config.in_channels, 1, height // cell, width // cell, dtype=dtype, device="meta")]
    captions = [torch.empty(tokens, caption, dtype=dtype, device="meta")]
    return _counted(lambda: transformer(noisy, torch.zeros(1, device="meta"), captions, return_dict=False))


def decode_flops(shapes: Shapes, width: int, height: int) -> int:
    """Those of one decoding of the VAE, untiled."""
    vae, cell = shapes.vae, factor(shapes.vae)
    size = (1, vae.config.latent_channels, height // cell, width // cell)
    return _counted(lambda: vae.decode(torch.empty(size, dtype=vae.dtype, device="meta"), return_dict=False))


def text_flops(shapes: Shapes, tokens: int) -> int:
    """Those of reading one prompt of `tokens` tokens, padding included."""
    ids_BL = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return _counted(lambda: shapes.text_encoder(input_ids=ids_BL, output_hidden_states=True))


def _counted(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


# --- tables ---------------------------------------------------------------------------------------------------------


def weights_table(geometry: Geometry) -> str:
    """Markdown: parameters, and GB in each way to keep them."""
    half, single = geometry.shapes(all_in(torch.bfloat16)), geometry.shapes(all_in(torch.float32))
    rows = []
    for component in COMPONENTS:
        parameters = sum(p.numel() for p in getattr(half, component).parameters())
        sizes = [
            component_bytes(single if way == "float32" else half, component, profile) for way, profile in STORED.items()
        ]
        rows.append([parameters, *sizes])
    total = [sum(column) for column in zip(*rows, strict=True)]
    lines = [f"| component | parameters | {' | '.join(f'{way} GB' for way in STORED)} |", _rule(2 + len(STORED))]
    for component, (parameters, *sizes) in zip((*COMPONENTS, "all"), (*rows, total), strict=True):
        lines.append(f"| {component} | {parameters:,} | {' | '.join(f'{size / GB:.3g}' for size in sizes)} |")
    return "\n".join(lines)


def flops_table(geometry: Geometry, sides: Sequence[int], steps: int) -> str:
    """Markdown: TFLOP of each phase for square pictures."""
    shapes = geometry.shapes(all_in(torch.bfloat16))
    lines = [
        f"| picture | DiT forward, {SHORT_TEXT} tokens | {LONG_TEXT} tokens | × {steps} | VAE decode "
        "| all, without text |",
        _rule(6),
    ]
    for side in sides:
        short, long = (forward_flops(shapes, side, side, tokens) / TERA for tokens in (SHORT_TEXT, LONG_TEXT))
        decode = decode_flops(shapes, side, side) / TERA
        cells = [f"{short:.4g}", f"{long:.4g}", _span(steps * short, steps * long), f"{decode:.3g}"]
        lines.append(f"| {side}² | {' | '.join(cells)} | {_span(steps * short + decode, steps * long + decode)} |")
    texts = " and ".join(f"{text_flops(shapes, n) / TERA:.3g} ({n} tokens)" for n in (SHORT_TEXT, LONG_TEXT))
    return "\n".join([*lines, "", f"Text encoder, for each new prompt: {texts} TFLOP."])


def foretold(geometry: Geometry, device: torch.device, dtypes: Mapping[str, torch.dtype]) -> "Foretold":
    """Estimates under profiles that may ask for other precisions."""
    return Foretold(Estimator(geometry.shapes(dtypes), device))


class Foretold:
    """The estimator, asked by preset."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    def peaks(self, preset: str, width: int, height: int) -> Estimate:
        """The phases of one image under `preset`, 512 tokens, without guidance."""
        return self._estimator.estimate(PRESETS[preset], width, height)


def foretold_table(geometry: Geometry, sides: Sequence[int]) -> str:
    """Markdown: GB by phase under every preset on a CUDA device in bfloat16, and beside it in RAM."""
    oracle = foretold(geometry, torch.device("cuda"), all_in(torch.bfloat16))
    lines = [
        f"| preset | {' | '.join(f'{side}²: text / denoise / decode' for side in sides)} | RAM beside |",
        _rule(2 + len(sides)),
    ]
    for preset in PRESETS:
        estimates = [oracle.peaks(preset, side, side) for side in sides]
        cells = [" / ".join(f"{phase.peak_bytes / GB:.2f}" for phase in one.phases) for one in estimates]
        lines.append(f"| {preset} | {' | '.join(cells)} | {max(one.host_bytes for one in estimates) / GB:.1f} |")
    return "\n".join(lines)


def _span(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"
