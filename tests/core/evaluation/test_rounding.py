"""The parent is rounded to the bytes that are wanted, and the bytes are the real ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY
from zimage_studio.core.evaluation import rounding
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.weight_headers import component_header
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import silent

HEADER = component_header(TINY, "transformer")
LAYERS = rounding.layers_of(HEADER, 4)
TOTAL = inspect_folder(TINY).bytes
LARGEST_STEP = max(layer.stored - layer.int8 for layer in LAYERS)


@given(share=st.floats(0.3, 1.2))
@settings(max_examples=60, deadline=None)
def test_the_bytes_come_within_one_layer_of_what_is_wanted(share: float) -> None:
    wanted = int(TOTAL * share)
    chosen = rounding.choose(LAYERS, TOTAL, wanted)
    reached = rounding.forecast(LAYERS, chosen, TOTAL)
    least = rounding.smallest(LAYERS, TOTAL)
    if wanted >= TOTAL:
        assert chosen == {} and reached == TOTAL
    elif wanted <= least:
        assert reached == least and set(chosen.values()) == {"int4"}
    else:
        assert abs(reached - wanted) <= LARGEST_STEP / 2


def test_the_middle_is_rounded_first_and_the_ends_keep_their_precision() -> None:
    half = rounding.choose(LAYERS, TOTAL, TOTAL - sum(layer.stored - layer.int8 for layer in LAYERS) // 2)
    assert set(half.values()) == {"int8"}
    assert any(name.startswith("layers.2.") for name in half)
    assert not any(name.startswith(("layers.0.", "layers.5.", "noise_refiner", "context_refiner")) for name in half)


def test_the_forecast_is_what_the_live_weights_take() -> None:
    artifact = ModelArtifact(key="tiny", kind="folder", path=str(TINY), name="tiny")
    transformer = load_pipeline(artifact, device="cpu", progress=silent).transformer
    chosen = rounding.choose(LAYERS, TOTAL, int(TOTAL * 0.68))
    assert set(chosen.values()) == {"int8", "int4"}
    inputs = torch.randn(3, 192)
    before = transformer.layers[2].attention.to_q(inputs)
    rounding.round_layers(transformer, chosen)
    stored = sum(layer.stored for layer in LAYERS if layer.name in chosen)
    real = TOTAL - stored + rounding.rounded_bytes(transformer, chosen)
    assert real == rounding.forecast(LAYERS, chosen, TOTAL)
    apart = (transformer.layers[2].attention.to_q(inputs) - before).norm() / before.norm()
    assert 0 < apart < 0.2
    with pytest.raises(ValueError, match="already"):
        rounding.round_layers(transformer, chosen)
