"""The estimate: what is traced, what the weights take, and what is known of the true geometry."""

from dataclasses import replace

import pytest
import torch

from benchmarks.memory_estimate import FLUX_VAE, TEXT_4B
from tests import tiny_random
from zimage_studio.core.memory.apply import apply
from zimage_studio.core.memory.estimate import Estimator
from zimage_studio.core.memory.measure import resident_weights
from zimage_studio.core.memory.shapes import Shapes, component_bytes, live_bytes
from zimage_studio.core.memory.site import COMPONENTS
from zimage_studio.core.memory.trace import HEAP_LARGEST_BYTES, trace
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB, GB = 2**20, 1e9


@pytest.fixture(scope="module")
def z_image() -> Shapes:
    """The true geometry, without a weight."""
    return Shapes.of_configs({}, TEXT_4B, FLUX_VAE, dict.fromkeys(COMPONENTS, torch.bfloat16))


@pytest.fixture(scope="module")
def foretell(z_image):
    return Estimator(z_image, CUDA).estimate


@pytest.fixture(scope="module")
def tiny() -> Shapes:
    return Shapes.of_pipeline(tiny_random.pipeline())


# --- tracing --------------------------------------------------------------------------------------------------------


def test_a_trace_counts_what_is_alive_together():
    a, b = (torch.empty(1000, dtype=torch.float32, device="meta") for _ in range(2))

    def run() -> None:
        c = a + b
        d = c * 2
        del c
        d.add_(1)
        e = d - a
        del d, e

    assert trace(run, [a, b]).alive == 2 * 4000


def test_a_view_costs_nothing_and_weights_do_not_count():
    weight = torch.empty(256, 256, device="meta")
    assert trace(lambda: weight.t()[:10].reshape(-1), [weight]).alive == 10 * 256 * 4
    assert trace(lambda: weight.t().view(-1, 2, 128), [weight]).alive == 0


@pytest.mark.parametrize("length", [64, 512])
def test_scores_are_counted_only_where_the_kernel_holds_them(length):
    q_BHLD = torch.empty(1, 2, length, 16, device="meta")

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q_BHLD, q_BHLD, q_BHLD)

    assert trace(attend, [q_BHLD]).alive == q_BHLD.numel() * 4
    assert trace(attend, [q_BHLD], quadratic=True).alive >= 2 * length * length * 4


def test_on_a_cpu_small_tensors_stay_in_the_heap_and_large_ones_go_back():
    def run() -> None:
        small = torch.empty(HEAP_LARGEST_BYTES // 4, device="meta") + 1
        del small
        large = torch.empty(HEAP_LARGEST_BYTES // 4 + 1, device="meta") + 1
        del large

    traced = trace(run)
    assert traced.alive == 2 * (HEAP_LARGEST_BYTES + 4)
    assert traced.heap >= 2 * HEAP_LARGEST_BYTES
    assert traced.resident == traced.heap + traced.large


def test_the_estimate_leaves_the_shapes_and_the_pipeline_as_they_were():
    pipeline = tiny_random.pipeline()
    shapes = Shapes.of_pipeline(pipeline)
    Estimator(shapes, CPU).estimate(replace(PRESETS["tiled"], attention_backend="native_math"), 64, 64)
    assert all(tensor.device.type == "meta" for tensor in shapes.transformer.parameters())
    assert not any("_diffusers_hook" in vars(module) for module in shapes.transformer.modules())
    assert resident_weights(pipeline) == sum(component_bytes(shapes, name, EXACT) for name in COMPONENTS)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile",
    [EXACT, MemoryProfile(fp8_storage=True), MemoryProfile(quantization="int4"),
     MemoryProfile(transformer_precision="bf16", text_encoder_precision="bf16", vae_precision="bf16")],
    ids=["exact", "fp8 storage", "int4", "bf16"],
)  # fmt: skip
def test_weights_are_foretold_to_the_byte(profile, tiny):
    pipeline = tiny_random.pipeline()
    apply(pipeline, replace(profile, embedding_cache=0))
    for name in COMPONENTS:
        module = getattr(pipeline, name)
        live = sum(live_bytes(tensor) for tensor in (*module.parameters(), *module.buffers()))
        assert component_bytes(tiny, name, profile) == live, name


def test_a_model_that_is_quantised_already_keeps_its_size():
    pipeline = tiny_random.pipeline()
    apply(pipeline, MemoryProfile(quantization="int4", embedding_cache=0))
    shapes = Shapes.of_pipeline(pipeline)
    assert shapes.stored_bytes is not None
    assert component_bytes(shapes, "transformer", EXACT) < component_bytes(
        Shapes.of_pipeline(tiny_random.pipeline()), "transformer", EXACT
    )


# --- the true geometry ----------------------------------------------------------------------------------------------


def test_the_true_geometry_has_the_published_sizes(z_image):
    assert sum(p.numel() for p in z_image.transformer.parameters()) == 6_154_908_736
    assert component_bytes(z_image, "text_encoder", EXACT) / GB == pytest.approx(8.04, abs=0.01)
    assert component_bytes(z_image, "vae", EXACT) / GB == pytest.approx(0.168, abs=0.001)


@pytest.mark.parametrize(
    ("side", "denoise_mib", "decode_mib", "tiled_mib"),
    [(512, 178, 384, 384), (1024, 534, 1536, 390), (1536, 1127, 3456, 399), (2048, 1958, 6144, 424)],
)
def test_activations_are_those_of_an_allocation_trace(foretell, side, denoise_mib, decode_mib, tiled_mib):
    """The table in docs/memory.md, found independently. The latents and the stacked result come on top here."""
    _, denoise, decode = foretell(EXACT, side, side).phases
    assert (denoise.peak_bytes - denoise.weights_bytes) / MIB == pytest.approx(denoise_mib, rel=0.03)
    assert (decode.peak_bytes - decode.weights_bytes) / MIB == pytest.approx(decode_mib, rel=0.01)
    decode = foretell(PRESETS["tiled"], side, side).phases[2]
    assert (decode.peak_bytes - decode.weights_bytes) / MIB == pytest.approx(tiled_mib, rel=0.1)


@pytest.mark.parametrize(
    ("preset", "most_gb"), [("exact", 22.5), ("text_out_tiled", 13.6), ("in_turn", 13.6), ("streamed", 2.5)]
)
def test_at_1024_px_the_presets_stay_below_their_aims(foretell, preset, most_gb):
    assert 0.5 < foretell(PRESETS[preset], 1024, 1024).peak_bytes / GB <= most_gb


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_larger_picture_never_needs_less(tiny, device, preset):
    estimator = Estimator(tiny, device)
    peaks = [estimator.estimate(PRESETS[preset], side, side).peak_bytes for side in (64, 128, 256, 512)]
    assert peaks == sorted(peaks)


def test_guidance_doubles_what_is_drawn_and_nothing_else(tiny):
    plain, guided = (Estimator(tiny, CUDA).estimate(EXACT, 256, 256, guidance=g) for g in (False, True))
    (_, plain_denoise, _), (_, guided_denoise, _) = plain.phases, guided.phases
    ratio = (guided_denoise.peak_bytes - guided_denoise.weights_bytes) / (
        plain_denoise.peak_bytes - plain_denoise.weights_bytes
    )
    assert ratio == pytest.approx(2, rel=0.05)
    assert (plain.phases[0], plain.phases[2]) == (guided.phases[0], guided.phases[2])


@pytest.mark.parametrize("switch", [{"feed_forward_chunks": 4}, {"vae_tile_px": 64}, {"evict_text_encoder": True}])
def test_what_is_meant_to_save_memory_is_foretold_to_save_it(tiny, switch):
    estimator = Estimator(tiny, CUDA)
    phases = zip(
        estimator.estimate(MemoryProfile(**switch), 512, 512).phases,
        estimator.estimate(EXACT, 512, 512).phases,
        strict=True,
    )
    gains = [exact.peak_bytes - saving.peak_bytes for saving, exact in phases]
    assert max(gains) > 0
    assert min(gains) >= 0


def test_query_chunks_save_where_the_kernel_is_quadratic(tiny):
    estimator = Estimator(tiny, CUDA)
    whole, pieces = (
        estimator.estimate(MemoryProfile(attention_backend="native_math", attention_query_chunk=n), 512, 512)
        for n in (0, 64)
    )
    assert pieces.phases[1].peak_bytes < whole.phases[1].peak_bytes / 2


def test_switches_without_effect_foretell_none(tiny):
    estimator = Estimator(tiny, CPU)
    exact = estimator.estimate(EXACT, 256, 256)
    idle = MemoryProfile(
        attention_slicing=True, gradient_checkpointing=True, vae_slicing=True, model_offload=True,
        attention_query_chunk=64,
    )  # fmt: skip
    assert estimator.estimate(idle, 256, 256) == exact


def test_without_a_folder_nothing_is_foretold_to_leave_ram(tiny):
    from_disk = PRESETS["from_disk"]
    with_folder, without = (Estimator(tiny, CPU, disk=d).estimate(from_disk, 64, 64) for d in (True, False))
    assert with_folder.peak_bytes < without.peak_bytes
    assert without == Estimator(tiny, CPU).estimate(EXACT, 64, 64)


def test_what_leaves_the_device_is_in_ram(tiny):
    all_bytes = sum(component_bytes(tiny, name, EXACT) for name in COMPONENTS)
    estimator = Estimator(tiny, CUDA)
    for phase in estimator.estimate(PRESETS["in_turn"], 64, 64).phases:
        assert phase.weights_bytes + phase.host_bytes == all_bytes
    streamed = estimator.estimate(PRESETS["streamed"], 64, 64)
    assert streamed.host_bytes == all_bytes - component_bytes(tiny, "vae", EXACT)
    assert estimator.estimate(PRESETS["from_disk"], 64, 64).host_bytes < streamed.host_bytes
