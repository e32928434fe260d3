"""float16 that works: exact scaling, everything taken back, LoRA and quantised layers, the ladder."""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.models.normalization import RMSNorm
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fp16_table import picture
from benchmarks.overflow import clamped, error, forward_on, make_overflow
from tests import tiny_random
from tests.conftest import TINY
from zimage_studio.core.memory.apply import apply
from zimage_studio.core.precision.casting import cast
from zimage_studio.core.precision.decoding import float32_vae
from zimage_studio.core.precision.ladder import (
    LADDER,
    RUNGS,
    Ladder,
    Rung,
    engage,
    load_dtypes,
    rungs,
    sensitive_blocks,
)
from zimage_studio.core.precision.offload import stream_blocks
from zimage_studio.core.precision.scaling import blocks, scalable, scale_products
from zimage_studio.errors import Cancelled, NonFiniteError
from zimage_studio.messages import CATALOGUES
from zimage_studio.records.memory import MemoryProfile

FLOAT16 = ("float16_scaled", "float16_float32_blocks")


@pytest.fixture
def pipeline() -> ZImagePipeline:
    """Random, in float32, a new one for each test."""
    made = tiny_random.pipeline()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def trained() -> ZImagePipeline:
    """The embedded model, in float32."""
    made = ZImagePipeline.from_pretrained(TINY, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def everything(pipeline: ZImagePipeline) -> dict[str, object]:
    """All that `engage` may touch."""
    found: dict[str, object] = {}
    for name in ("transformer", "vae"):
        for path, module in getattr(pipeline, name).named_modules():
            place = f"{name}.{path}"
            found[f"{place} hooks"] = (len(module._forward_pre_hooks), len(module._forward_hooks))
            found[f"{place} eps"] = getattr(module, "eps", None)
            found[f"{place} forward"] = getattr(module.forward, "__func__", module.forward)
        for path, tensor in getattr(pipeline, name).state_dict().items():
            found[f"{name}.{path}"] = (tensor.dtype, bits(tensor))
    vae, matmul = pipeline.vae, torch.backends.cuda.matmul
    found["tiling"] = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    found["sums"] = (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_fp16_accumulation)
    return found


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy(force=True).tobytes()


# the algebra


@pytest.mark.parametrize("exponent", [4, 6, 10])
def test_scaling_cancels_exactly(pipeline, trained, exponent):
    for pipe in (pipeline, trained):
        forward = forward_on(pipe)
        before = forward(pipe.transformer)
        with ExitStack() as undo:
            scale_products(pipe.transformer, exponent, undo)
            assert torch.equal(forward(pipe.transformer), before)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 10), st.floats(-12, 12), st.sampled_from([1e-5, 1e-6, 1e-2]))
def test_the_norm_of_a_scaled_input_with_scaled_eps_is_the_same_norm(seed, exponent, magnitude, eps):
    norm = RMSNorm(48, eps=eps)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(seed)) * 2.0**magnitude
    before = norm(x)
    norm.eps = eps * 4.0**-exponent
    assert torch.equal(norm(x * 2.0**-exponent), before)


def test_without_the_matching_eps_small_products_come_out_wrong(pipeline):
    forward = forward_on(pipeline)
    with torch.no_grad():
        for block in blocks(pipeline.transformer):
            block.attention.to_out[0].weight.mul_(2**-5)
    exact = forward(pipeline.transformer)
    with ExitStack() as undo:
        scale_products(pipeline.transformer, 6, undo)
        assert torch.equal(forward(pipeline.transformer), exact)
        for block in blocks(pipeline.transformer):
            block.attention_norm2.eps *= 4.0**6
        assert error(forward(pipeline.transformer), exact) > 0.05


# overflow made real


@pytest.mark.parametrize(("strength", "only_largest"), [(1, False), (2, False), (14, False), (2, True), (14, True)])
def test_scaled_is_five_times_closer_than_clamped_where_plain_float16_is_not_finite(trained, strength, only_largest):
    forward = forward_on(trained, side=8)
    exact = forward(trained.transformer)
    assert make_overflow(trained.transformer, strength, forward, only_largest=only_largest) > 1
    assert torch.equal(forward(trained.transformer), exact), "growing the products changed the function"
    ours = {}
    for name in (*FLOAT16, "bfloat16"):
        engaged = engage(trained, RUNGS[name])
        ours[name] = error(forward(trained.transformer), exact)
        engaged.remove()
    half = trained.transformer.half()
    assert not torch.isfinite(forward(half)).all()
    with clamped(half) as clamp:
        cut = error(forward(half), exact)
    assert clamp.beyond > 0
    assert cut >= 5 * ours["float16_scaled"]
    assert ours["float16_scaled"] < 1.5e-3
    assert 5 * max(ours[name] for name in FLOAT16) < ours["bfloat16"]


def test_without_overflow_scaled_is_not_worse_than_plain_float16(trained):
    forward = forward_on(trained, side=8)
    exact = forward(trained.transformer)
    engaged = engage(trained, RUNGS["float16_scaled"])
    scaled = error(forward(trained.transformer), exact)
    engaged.remove()
    assert scaled <= 1.05 * error(forward(trained.transformer.half()), exact)


def test_beyond_the_reach_of_the_scale_nothing_finite_is_pretended(trained):
    forward = forward_on(trained, side=8)
    make_overflow(trained.transformer, 200, forward)
    engage(trained, RUNGS["float16_scaled"])
    assert not torch.isfinite(forward(trained.transformer)).all()


def test_one_sensitive_block_far_beyond_the_scale_is_saved_by_float32_blocks(trained):
    forward = forward_on(trained, side=8)
    exact = forward(trained.transformer)
    make_overflow(trained.transformer, 200, forward, only_largest=True)
    with_scale_only = engage(trained, RUNGS["float16_scaled"])
    assert not torch.isfinite(forward(trained.transformer)).all()
    with_scale_only.remove()
    engage(trained, RUNGS["float16_float32_blocks"])
    assert error(forward(trained.transformer), exact) < 1.5e-3


def test_the_picture_is_the_float32_one_where_clamping_distorts_it():
    made = picture(TINY, 14, side=64, steps=3)
    assert made.plain is None
    assert made.rung == "float16_scaled"
    assert made.ladder > 55
    assert made.clamped < 30


@pytest.mark.parametrize("name", FLOAT16)
def test_the_sum_over_blocks_is_float32_and_the_layers_are_float16(pipeline, name):
    engage(pipeline, RUNGS[name])
    seen: dict[str, list[torch.dtype]] = {"sum": [], "layer": [], "end": []}
    last = pipeline.transformer.layers[-1]
    last.register_forward_hook(lambda _module, args, output: seen["sum"].extend([args[0].dtype, output.dtype]))
    last.feed_forward.w2.register_forward_hook(lambda _module, args, output: seen["layer"].append(output.dtype))
    final = pipeline.transformer.all_final_layer["2-1"].linear
    final.register_forward_hook(lambda _module, args, output: seen["end"].append(output.dtype))
    tiny_random.draw(pipeline)
    assert {key: set(found) for key, found in seen.items()} == {
        "sum": {torch.float32},
        "layer": {torch.float16},
        "end": {torch.float16},
    }


def test_a_sum_beyond_the_limit_is_held(pipeline):
    with torch.no_grad():
        pipeline.transformer.cap_pad_token.fill_(60000)
        for block in pipeline.transformer.context_refiner:
            block.attention_norm2.weight.fill_(8000)  # a norm of 64 channels gives at most 8 times its weight
            block.ffn_norm2.weight.fill_(8000)
    forward = forward_on(pipeline)
    exact = forward(pipeline.transformer)
    engaged = engage(pipeline, RUNGS["float16_scaled"])
    sums: list[float] = []
    refiner = pipeline.transformer.context_refiner[-1]
    recorder = refiner.register_forward_hook(lambda _module, _args, output: sums.append(float(output.abs().max())))
    assert error(forward(pipeline.transformer), exact) < 0.01
    assert max(sums) > 65504
    recorder.remove()
    engaged.remove()
    assert not torch.isfinite(forward(pipeline.transformer.half())).all()


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_float16_products_are_summed_in_float32_while_they_are_computed(pipeline, rung):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    engaged = engage(pipeline, rung)
    during = (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_fp16_accumulation)
    engaged.remove()
    assert during == ((False, False) if rung.dtype == "float16" else (before, False))
    assert matmul.allow_fp16_reduced_precision_reduction == before


# taken back


@pytest.mark.parametrize("loaded", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_remove_gives_the_pipeline_back_bit_for_bit(pipeline, rung, loaded):
    for name in ("transformer", "vae", "text_encoder"):
        getattr(pipeline, name).to(loaded)
    before = everything(pipeline)
    engaged = engage(pipeline, rung, tile_px=32)
    already = rung.dtype == "bfloat16" and loaded == torch.bfloat16
    assert (everything(pipeline) == before) == already
    tiny_random.draw(pipeline)
    engaged.remove()
    engaged.remove()
    assert everything(pipeline) == before


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_the_picture_after_a_rung_is_the_picture_before_it(pipeline, rung):
    before = tiny_random.draw(pipeline)
    engaged = engage(pipeline, rung)
    during = tiny_random.draw(pipeline)
    engaged.remove()
    assert torch.equal(tiny_random.draw(pipeline), before)
    assert torch.equal(during, before) == (rung.dtype == "float32")
    assert error(during, before) < 0.05


def test_nothing_is_left_behind_when_a_rung_cannot_be_engaged(pipeline):
    w2 = pipeline.transformer.layers[1].feed_forward.w2
    w2.bias = torch.nn.Parameter(torch.zeros(w2.out_features))
    assert not scalable(pipeline.transformer)
    before = everything(pipeline)
    with pytest.raises(ValueError, match="bias"):
        engage(pipeline, RUNGS["float16_scaled"])
    assert everything(pipeline) == before
    assert "float16" not in {rung.dtype for rung in rungs("float16", bfloat16=True, scalable=False)}


def test_group_offloaded_weights_are_refused_before_anything_changes(pipeline):
    pipeline.transformer.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    before = everything(pipeline)
    with pytest.raises(ValueError, match="group-offloaded"):
        engage(pipeline, RUNGS["float16_scaled"])
    assert everything(pipeline) == before


# other layers in their places


def lora_of(pipeline: ZImagePipeline) -> None:
    """A LoRA of visible strength on every scaled layer and on the last one."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["w3", "w2", "to_out.0", "linear"], init_lora_weights=False
    )
    torch.manual_seed(3)
    pipeline.transformer.add_adapter(config, "style")


def test_a_lora_loaded_before_or_after_is_scaled_with_its_layer(pipeline):
    plain = tiny_random.draw(pipeline)
    lora_of(pipeline)
    with_lora = tiny_random.draw(pipeline)
    assert error(with_lora, plain) > 0.01
    with ExitStack() as undo:
        scale_products(pipeline.transformer, 6, undo)
        assert torch.equal(tiny_random.draw(pipeline), with_lora)
        pipeline.transformer.delete_adapters("style")
        pipeline.unload_lora_weights()
        without = tiny_random.draw(pipeline)
        assert torch.equal(without, plain)
        lora_of(pipeline)
        assert torch.equal(tiny_random.draw(pipeline), with_lora)


@pytest.mark.parametrize("rung", [RUNGS[name] for name in FLOAT16], ids=lambda rung: rung.name)
def test_a_lora_loaded_on_a_float16_rung_works(pipeline, rung):
    lora_of(pipeline)
    exact = tiny_random.draw(pipeline)
    pipeline.transformer.delete_adapters("style")
    pipeline.unload_lora_weights()
    engage(pipeline, rung)
    lora_of(pipeline)
    assert error(tiny_random.draw(pipeline), exact) < 0.01


def test_quantised_gguf_layers_are_scaled_too(pipeline, tmp_path: Path):
    from zimage_studio.core.loading import load_pipeline
    from zimage_studio.core.model_files import inspect_file
    from zimage_studio.records.artifact import ModelArtifact
    from zimage_studio.records.progress import silent

    parts = tmp_path / "parts"
    pipeline.save_pretrained(parts)
    file = tiny_random.write_gguf(pipeline.transformer, tmp_path / "model.gguf", "Q8_0")
    facts = inspect_file(file)
    artifact = ModelArtifact(key="q", name="q", kind=facts.kind, path=str(file))
    quantised = load_pipeline(artifact, device="cpu", parts=parts, progress=silent)
    quantised.set_progress_bar_config(disable=True)
    before, exact = everything(quantised), tiny_random.draw(quantised)
    for name in FLOAT16:
        engaged = engage(quantised, RUNGS[name])
        assert quantised.transformer.layers[2].feed_forward.w3.weight.dtype == torch.uint8
        assert error(tiny_random.draw(quantised), exact) < 0.01
        engaged.remove()
    assert everything(quantised) == before
    assert torch.equal(tiny_random.draw(quantised), exact)


def test_float8_storage_is_scaled_too(pipeline):
    pipeline.transformer.half()
    pipeline.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=torch.float16,
        skip_modules_pattern=("norm", "t_embedder", "cap_embedder", "adaLN", "x_embedder", "final_layer", "pad_token"),
    )
    plain = tiny_random.draw(pipeline)
    engage(pipeline, RUNGS["float16_scaled"])
    assert pipeline.transformer.layers[0].feed_forward.w3.weight.dtype == torch.float8_e4m3fn
    assert error(tiny_random.draw(pipeline), plain) < 0.01


@pytest.mark.parametrize("pack", ["int4", "fp8"])
def test_packed_weights_walk_the_whole_ladder_and_back(pipeline, pack):
    profile = MemoryProfile(fp8_storage=pack == "fp8", quantization="int4" if pack == "int4" else "none")
    apply(pipeline, profile)
    before, exact = everything(pipeline), tiny_random.draw(pipeline)
    layer = pipeline.transformer.layers[1].feed_forward.w3
    packed = {name: bits(tensor) for name, tensor in layer.state_dict().items()}
    for rung in LADDER:
        engaged = engage(pipeline, rung)
        assert {name: bits(tensor) for name, tensor in layer.state_dict().items()} == packed
        assert error(tiny_random.draw(pipeline), exact) < (0.05 if rung.dtype == "bfloat16" else 0.01)
        engaged.remove()
        assert everything(pipeline) == before
    assert torch.equal(tiny_random.draw(pipeline), exact)


def test_weights_of_a_class_of_their_own_are_not_cast_behind_its_back(pipeline):
    class Packed(torch.Tensor):
        """As torchao's: claims a floating dtype."""

    layer = pipeline.transformer.layers[1].feed_forward.w1
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    before = layer.weight
    with pytest.raises(ValueError, match="Packed was made"):
        engage(pipeline, RUNGS["float16_scaled"])
    assert layer.weight is before
    assert pipeline.transformer.dtype == torch.float32
    engage(pipeline, RUNGS["float32"]).remove()


# the VAE


def test_the_vae_leaves_float16_and_small_pictures_are_not_tiled(pipeline):
    exact = pipeline.vae
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = exact.decode(latents).sample
        engaged = engage(pipeline, RUNGS["float16_scaled"])
        assert engaged.facts["vae"] == "float32"
        assert engaged.facts["vae_tile_px"] == 512
        assert torch.equal(pipeline.vae.decode(latents).sample, before)


def test_a_float16_vae_computes_in_float32_on_every_rung(pipeline):
    for rung in LADDER:
        pipeline.vae.half()
        engaged = engage(pipeline, rung)
        assert pipeline.vae.dtype == torch.float32
        engaged.remove()
        assert pipeline.vae.dtype == torch.float16


def test_a_bfloat16_vae_stays_one_on_the_bfloat16_rung(pipeline):
    pipeline.vae.to(torch.bfloat16)
    assert "vae" not in engage(pipeline, RUNGS["bfloat16"]).facts
    assert pipeline.vae.dtype == torch.bfloat16


def test_tiles_that_were_chosen_before_stay(pipeline):
    vae = pipeline.vae
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 4
    assert engage(pipeline, RUNGS["float16_scaled"]).facts["vae_tile_px"] == 32


def test_pictures_larger_than_a_tile_are_decoded_in_tiles(pipeline):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = pipeline.vae.decode(latents).sample
        engage(pipeline, RUNGS["float16_scaled"], tile_px=32)
        assert (pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size) == (32, 4)
        tiled = pipeline.vae.decode(latents).sample
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


def test_tiles_can_be_declined(pipeline):
    with ExitStack() as undo:
        float32_vae(pipeline.vae, None, undo)
        assert not pipeline.vae.use_tiling
    assert engage(pipeline, RUNGS["float32"], tile_px=None).facts["vae_tile_px"] is None


# the rungs


@pytest.mark.parametrize(
    ("start", "bfloat16", "names"),
    [
        ("float16", True, ["float16_scaled", "float16_float32_blocks", "bfloat16", "float32"]),
        ("float16", False, ["float16_scaled", "float16_float32_blocks", "float32"]),
        ("bfloat16", True, ["bfloat16", "float32"]),
        ("bfloat16", False, ["float32"]),
        ("float32", True, ["float32"]),
    ],
)
def test_the_rungs_go_from_the_start_downwards(start, bfloat16, names):
    assert [rung.name for rung in rungs(start, bfloat16=bfloat16)] == names


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_a_rung_can_be_recorded_told_and_loaded_for(pipeline, rung):
    engaged = engage(pipeline, rung)
    assert json.loads(json.dumps(engaged.facts))["rung"] == rung.name
    assert all(f"rung.{rung.name}" in catalogue for catalogue in CATALOGUES.values())
    assert load_dtypes(rung)["transformer"] == pipeline.transformer.dtype
    assert load_dtypes(rung)["vae"] in (torch.float32, torch.bfloat16)


def test_the_sensitive_blocks_alone_are_float32(pipeline):
    engaged = engage(pipeline, RUNGS["float16_float32_blocks"])
    wide = engaged.facts["float32_blocks"]
    assert wide == ["noise_refiner.0", "layers.0", "layers.1"] == list(sensitive_blocks(pipeline.transformer))
    for name, parameter in pipeline.transformer.named_parameters():
        inside = any(name.startswith(f"{block}.") for block in wide)
        assert parameter.dtype == (torch.float32 if inside else torch.float16), name


def test_weights_that_a_rung_keeps_in_float32_are_never_rounded(pipeline):
    weight = pipeline.transformer.layers[0].feed_forward.w1.weight.detach().clone()
    engage(pipeline, RUNGS["float16_float32_blocks"])
    assert torch.equal(pipeline.transformer.layers[0].feed_forward.w1.weight, weight)


def test_streaming_gives_the_same_picture_and_ends_without_a_trace(pipeline):
    before, exact = everything(pipeline), tiny_random.draw(pipeline)
    with ExitStack() as undo:
        stream_blocks(pipeline.transformer, torch.device("cpu"), undo)
        assert torch.equal(tiny_random.draw(pipeline), exact)
    assert everything(pipeline) == before


def test_casting_to_less_keeps_what_it_cannot_make_again():
    layer = torch.nn.Linear(7, 5)
    before = layer.weight.detach().clone()
    with ExitStack() as undo:
        cast(layer, torch.float16, undo)
        assert layer.weight.dtype == torch.float16
        cast(layer, torch.bfloat16, undo)
    assert torch.equal(layer.weight, before)


def test_a_change_made_meanwhile_survives_where_nothing_had_to_be_kept():
    layer = torch.nn.Linear(7, 5).half()
    with ExitStack() as undo:
        cast(layer, torch.float32, undo)
        with torch.no_grad():
            layer.weight.fill_(0.5)
    assert layer.weight.dtype == torch.float16
    assert (layer.weight == 0.5).all()


# the ladder


def failing_until(name: str, pipeline: ZImagePipeline, seen: list[str], ladder: Ladder):
    def draw() -> np.ndarray:
        seen.append(ladder.rung.name)
        if ladder.rung.name != name:
            raise NonFiniteError("flat_image")
        return tiny_random.draw(pipeline).numpy()

    return draw


def test_the_ladder_goes_down_until_finite_stays_there_and_says_so(pipeline):
    ladder, seen = Ladder(pipeline, LADDER), []
    assert ladder.facts == {}
    draw = failing_until("bfloat16", pipeline, seen, ladder)
    ladder.draw(draw)
    ladder.draw(draw)
    assert seen == ["float16_scaled", "float16_float32_blocks", "bfloat16", "bfloat16"]
    assert ladder.facts == {"rung": "bfloat16", "not_finite": ["float16_scaled", "float16_float32_blocks"]}


def test_real_overflow_walks_the_real_ladder(trained):
    forward = forward_on(trained, side=8)
    make_overflow(trained.transformer, 200, forward)
    before = everything(trained)
    exact = forward(trained.transformer)

    def draw() -> torch.Tensor:
        velocity = forward(trained.transformer)
        if not torch.isfinite(velocity).all():
            raise NonFiniteError("flat_image")
        return velocity

    without_bfloat16 = Ladder(trained, rungs("float16", bfloat16=False))
    assert torch.equal(without_bfloat16.draw(draw), exact)
    assert without_bfloat16.facts["rung"] == "float32"
    without_bfloat16.remove()
    assert everything(trained) == before


def test_when_no_rung_is_finite_the_error_is_the_persons(pipeline):
    with torch.no_grad():
        pipeline.transformer.layers[1].feed_forward.w2.weight[0, 0] = float("nan")
    ladder, seen = Ladder(pipeline, LADDER), []
    with pytest.raises(NonFiniteError):
        ladder.draw(failing_until("none of them", pipeline, seen, ladder))
    assert seen == list(RUNGS)
    before = ladder.rung.name
    with pytest.raises(NonFiniteError):
        ladder.draw(failing_until("none of them", pipeline, seen, ladder))
    assert ladder.rung.name == before == "float32"


@pytest.mark.parametrize("kind", [Cancelled, MemoryError])
def test_a_stop_or_another_failure_is_not_a_reason_to_go_down(pipeline, kind):
    ladder = Ladder(pipeline, LADDER)

    def draw() -> None:
        raise kind

    with pytest.raises(kind):
        ladder.draw(draw)
    assert ladder.rung.name == "float16_scaled"
    assert torch.isfinite(ladder.draw(lambda: tiny_random.draw(pipeline))).all()


def test_a_ladder_that_was_removed_goes_on_where_it_stood(pipeline):
    before = everything(pipeline)
    ladder, seen = Ladder(pipeline, LADDER), []
    draw = failing_until("bfloat16", pipeline, seen, ladder)
    ladder.draw(draw)
    ladder.remove()
    assert everything(pipeline) == before
    ladder.draw(draw)
    assert seen[-1] == "bfloat16"


def test_a_memory_profile_goes_with_each_rung_and_comes_off_before_it(pipeline, tmp_path: Path):
    profile = MemoryProfile(
        feed_forward_chunks=4, attention_query_chunk=64, attention_backend="native_math", embedding_cache=4,
        group_offload="block", group_offload_disk=True,
    )  # fmt: skip
    exact, before, fitted = tiny_random.draw(pipeline), everything(pipeline), []

    def fit(rung: Rung):
        fitted.append(rung.name)
        applied = apply(pipeline, profile, scratch=tmp_path)
        states = {state.name: state.state for state in applied.states}
        assert states["group_offload"] == states["feed_forward_chunks"] == "applied"
        return applied.undo

    ladder, seen = Ladder(pipeline, LADDER, fit=fit), []
    made = torch.from_numpy(ladder.draw(failing_until("float32", pipeline, seen, ladder)))
    assert fitted == seen == list(RUNGS)
    assert error(made, exact) < 1e-5
    ladder.remove()
    assert everything(pipeline) == before
    first = Ladder(pipeline, LADDER, fit=fit)
    assert error(first.draw(lambda: tiny_random.draw(pipeline)), exact) < 0.01


def test_a_fit_that_fails_leaves_the_pipeline_as_it_was(pipeline):
    before = everything(pipeline)

    def fit(rung: Rung):
        raise torch.OutOfMemoryError

    ladder = Ladder(pipeline, LADDER, fit=fit)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            ladder.draw(lambda: None)
        assert everything(pipeline) == before
        assert ladder.facts == {}


def test_a_ladder_without_rungs_is_refused(pipeline):
    with pytest.raises(ValueError, match="rung"):
        Ladder(pipeline, ())
