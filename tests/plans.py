"""A small plan, made without a model."""

from zimage_studio.records.plan import RUNTIMES, BlockCut, BlockShape, PrunePlan, TransformerShape

SHAPE = TransformerShape(
    dim=3, head_dim=1, in_channels=1, caption_width=1,
    blocks=(
        BlockShape("noise_refiner", 0, 8, 3), BlockShape("context_refiner", 0, 8, 3),
        *(BlockShape("layers", index, 8, 3) for index in range(3)),
    ),
)  # fmt: skip
CUTS = (
    BlockCut("noise_refiner", 0), BlockCut("context_refiner", 0),
    BlockCut("layers", 0, True, "0-3,7", "1-2"), BlockCut("layers", 1, kept=False), BlockCut("layers", 2),
)  # fmt: skip


def plan(**changes: object) -> PrunePlan:
    """Its numbers are made up."""
    values = {
        "model": "small", "model_sha256": "ab" * 32, "created": "2026-01-01T00:00:00+00:00", "kinds": ("depth", "ffn"),
        "criterion": "l1", "target": {"ratio": 0.5}, "before": SHAPE, "cuts": CUTS, "parameters_before": 10,
        "parameters_after": 5, "bytes_before": 20, "bytes_after": 10, "transformer_parameters_before": 8,
        "transformer_parameters_after": 3, "transformer_bytes_before": 16, "transformer_bytes_after": 6,
        "flops_before": 100, "flops_after": 50, "width": 64, "height": 64, "caption_tokens": 64, "image_tokens": 16,
        "item_bytes": 2, "predicted_speedup": 2.0, "loads_in": dict.fromkeys(RUNTIMES, "unchanged"),
        "loads_why": dict.fromkeys(RUNTIMES, "loads.same"), "item_bytes_of": {"x": 4}, "float16_probe": (0.1, 0.2, 0.3),
    }  # fmt: skip
    return PrunePlan(**{**values, **changes})  # type: ignore[arg-type]
