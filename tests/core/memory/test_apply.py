"""Switches: what they do to the numbers, what they say, and that they can be taken back."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from tests import tiny_random
from tests.core.memory.conftest import everything, pixels
from zimage_studio.core.memory import switches_transformer
from zimage_studio.core.memory.apply import LOOKS, apply, homes
from zimage_studio.messages import CATALOGUES
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile

CPU = torch.device("cpu")

EXACTLY_EQUAL = {
    "exact": EXACT,
    "cache off": MemoryProfile(embedding_cache=0),
    "slicing": MemoryProfile(attention_slicing=True),
    "feed-forward in 2": MemoryProfile(feed_forward_chunks=2),
    "feed-forward in 7": MemoryProfile(feed_forward_chunks=7),
    "vae slicing": MemoryProfile(vae_slicing=True),
    "a tile larger than the picture": MemoryProfile(vae_tile_px=128),
    "checkpointing": MemoryProfile(gradient_checkpointing=True),
    "eviction": MemoryProfile(evict_text_encoder=True),
    "model offload": MemoryProfile(model_offload=True),
    "group offload": MemoryProfile(group_offload="leaf"),
    "blocks from disk": MemoryProfile(group_offload="block", group_offload_disk=True),
    "pairs from disk": MemoryProfile(group_offload="block", group_offload_blocks=2, group_offload_disk=True),
    "leaves from disk": MemoryProfile(group_offload="leaf", group_offload_disk=True, evict_text_encoder=True),
    "all at once": MemoryProfile(
        attention_slicing=True, feed_forward_chunks=3, vae_slicing=True, gradient_checkpointing=True,
        evict_text_encoder=True, group_offload="block", group_offload_disk=True, vae_tile_px=64,
    ),
}  # fmt: skip


def states(applied, size=None) -> dict[str, tuple[str, str]]:
    return {state.name: (state.state, state.reason) for state in applied.look(size)}


@pytest.mark.parametrize("profile", EXACTLY_EQUAL.values(), ids=EXACTLY_EQUAL.keys())
def test_a_switch_that_only_saves_memory_changes_no_bit_and_is_undone_without_a_trace(
    pipeline, expected, profile, tmp_path
):
    before = everything(pipeline)
    applied = apply(pipeline, profile, scratch=tmp_path)
    assert pixels(pipeline) == expected
    assert pixels(pipeline) == expected, "the second image: caches and prefetching are warm"
    assert applied.undo() == ()
    assert everything(pipeline) == before
    assert pixels(pipeline) == expected
    assert list(tmp_path.iterdir()) == []


def test_switches_that_round_weights_say_that_they_stay(pipeline, expected):
    applied = apply(pipeline, MemoryProfile(fp8_storage=True))
    assert pixels(pipeline) != expected
    assert applied.undo() == ("fp8_storage",)


def test_fp8_storage_keeps_what_is_small_and_sensitive(pipeline):
    applied = apply(pipeline, MemoryProfile(fp8_storage=True))
    (state,) = [s for s in applied.states if s.name == "fp8_storage"]
    stored = {n for n, p in pipeline.transformer.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert state.state == "applied"
    assert 30 < state.values["value"] < 100
    assert stored
    assert not [n for n in stored if "adaLN" in n or "norm" in n or "embedder" in n or "final" in n or "pad" in n]
    assert states(applied)["transformer_precision"] == ("applied", "memory.precision.is")


# --- what each switch says ------------------------------------------------------------------------------------------


def test_every_switch_answers_and_every_answer_is_a_sentence_in_both_languages(pipeline, tmp_path):
    for profile in (EXACT, *EXACTLY_EQUAL.values(), MemoryProfile(vae_tile_px=32, vae_precision="fp16")):
        applied = apply(pipeline, profile, scratch=tmp_path)
        for state in applied.look((64, 64)):
            assert state.state in ("applied", "no_effect", "refused")
            for catalogue in CATALOGUES.values():
                assert catalogue[state.reason].format(**state.values)
        assert [state.name for state in applied.states] == list(profile.switches) == list(LOOKS)
        applied.undo()


def test_under_exact_everything_is_off_but_precision_backend_and_memory_of_prompts(pipeline):
    on = {name for name, (state, _) in states(apply(pipeline, EXACT)).items() if state != "no_effect"}
    assert on == {
        "text_encoder_precision", "transformer_precision", "vae_precision", "attention_backend", "embedding_cache"
    }  # fmt: skip


NO_EFFECT_ON_A_CPU = [
    ({"attention_slicing": True}, "memory.slicing.no_hook"),
    ({"vae_slicing": True}, "memory.vae_slicing.single"),
    ({"gradient_checkpointing": True}, "memory.checkpointing.no_gradients"),
    ({"model_offload": True}, "memory.no_accelerator"),
    ({"group_offload": "block"}, "memory.no_accelerator"),
    ({"group_offload": "leaf"}, "memory.no_accelerator"),
    ({"evict_text_encoder": True}, "memory.no_accelerator"),
    ({"attention_query_chunk": 64}, "memory.query_chunk.linear"),
]


@pytest.mark.parametrize(("switch", "reason"), NO_EFFECT_ON_A_CPU, ids=lambda value: str(value))
def test_a_switch_without_effect_says_why(pipeline, expected, switch, reason):
    applied = apply(pipeline, MemoryProfile(**switch))
    assert states(applied)[next(iter(switch))] == ("no_effect", reason)
    assert pixels(pipeline) == expected


def test_streaming_beside_the_computation_needs_cuda(pipeline, tmp_path):
    profile = MemoryProfile(group_offload="block", group_offload_stream=True, group_offload_disk=True)
    found = states(apply(pipeline, profile, scratch=tmp_path))
    assert found["group_offload_stream"] == ("no_effect", "memory.group.no_stream")
    assert found["group_offload"] == ("applied", "memory.group.blocks")
    assert found["group_offload_disk"] == ("applied", "memory.group.disk")


def test_without_a_folder_nothing_goes_to_disk(pipeline):
    found = states(apply(pipeline, MemoryProfile(group_offload="block", group_offload_disk=True)))
    assert found["group_offload"] == found["group_offload_disk"] == ("refused", "memory.no_scratch")


def test_the_answer_comes_from_the_live_pipeline_not_from_the_profile(pipeline):
    applied = apply(pipeline, MemoryProfile(feed_forward_chunks=2, vae_tile_px=32, gradient_checkpointing=True))
    assert states(applied)["feed_forward_chunks"][0] == states(applied)["vae_tile_px"][0] == "applied"
    pipeline.vae.disable_tiling()
    pipeline.transformer = tiny_random.transformer()
    found = states(applied)
    assert found["feed_forward_chunks"] == found["vae_tile_px"] == ("no_effect", "memory.off")
    assert found["gradient_checkpointing"] == ("no_effect", "memory.off")


def test_what_somebody_else_switched_on_is_told_too(pipeline):
    applied = apply(pipeline, EXACT)
    pipeline.vae.enable_tiling()
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert states(applied)["vae_tile_px"][0] == states(applied)["fp8_storage"][0] == "applied"


# --- tiling ---------------------------------------------------------------------------------------------------------


def test_tiles_change_a_larger_picture_a_little_and_say_so(pipeline, expected):
    applied = apply(pipeline, MemoryProfile(vae_tile_px=32))
    assert states(applied, (64, 64))["vae_tile_px"] == ("applied", "memory.tile.is")
    assert states(applied, (32, 32))["vae_tile_px"] == ("no_effect", "memory.tile.small")
    assert pixels(pipeline) != expected
    assert (pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size) == (32, 4)


def test_diffusers_own_tiling_does_nothing_to_a_picture_of_the_size_it_was_trained_at(pipeline, expected):
    applied = apply(pipeline, EXACT)
    pipeline.vae.enable_tiling()
    assert states(applied, (64, 64))["vae_tile_px"] == ("no_effect", "memory.tile.small")
    assert pixels(pipeline) == expected


@pytest.mark.parametrize("tile_px", range(32, 257, 32))
def test_every_size_of_tile_gives_a_whole_picture(pipeline, tile_px):
    latents = torch.randn(1, 4, 20, 28)
    apply(pipeline, MemoryProfile(vae_tile_px=tile_px))
    with torch.no_grad():
        assert pipeline.vae.decode(latents).sample.shape == (1, 3, 160, 224)


# --- attention ------------------------------------------------------------------------------------------------------


def test_queries_in_pieces_give_the_same_picture_where_the_kernel_is_quadratic(pipeline):
    whole = apply(pipeline, MemoryProfile(attention_backend="native_math"))
    assert states(whole)["attention_backend"] == ("applied", "memory.backend.is")
    expected = pixels(pipeline, side=256)
    whole.undo()
    pieces = apply(pipeline, MemoryProfile(attention_backend="native_math", attention_query_chunk=64))
    assert states(pieces)["attention_query_chunk"] == ("applied", "memory.query_chunk.is")
    assert pixels(pipeline, side=256) == expected
    before = everything(tiny_random.pipeline())
    pieces.undo()
    assert [v for k, v in everything(pipeline).items() if k.endswith("bits")] == [
        v for k, v in before.items() if k.endswith("bits")
    ]


def test_our_attention_is_diffusers_attention(pipeline, expected):
    from zimage_studio.core.memory.attention import attentions
    from zimage_studio.core.memory.hooks import ExitStack
    from zimage_studio.core.memory.switches_attention import set_processors

    ours = [attention.processor for attention in attentions(pipeline.transformer)]
    with ExitStack() as undo:
        set_processors(pipeline.transformer, None, 0, undo)
        assert pixels(pipeline) == expected
    assert [attention.processor for attention in attentions(pipeline.transformer)] == ours


@pytest.mark.parametrize("backend", ["flash", "flash_3", "sage", "xformers", "native_cudnn"])
def test_a_backend_that_cannot_run_is_refused_and_changes_nothing(pipeline, expected, backend):
    applied = apply(pipeline, MemoryProfile(attention_backend=backend))
    assert states(applied)["attention_backend"] == ("refused", "memory.backend.refused")
    assert pixels(pipeline) == expected


def test_foreign_attention_is_left_alone(pipeline):
    class Foreign(type(pipeline.transformer.layers[0].attention.processor)):
        """Somebody else's."""

    pipeline.transformer.layers[0].attention.set_processor(Foreign())
    applied = apply(pipeline, MemoryProfile(attention_backend="native_math", attention_query_chunk=64))
    assert states(applied)["attention_query_chunk"] == ("refused", "memory.foreign_attention")


# --- feed-forward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [2, 3, 4, 7, 64])
@pytest.mark.parametrize("length", [32, 64, 96, 224, 1056])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feed_forward_layer_in_pieces_is_bit_for_bit_the_whole(chunks, length, dtype):
    from contextlib import ExitStack

    from zimage_studio.core.memory.feed_forward import chunk_feed_forward

    transformer = tiny_random.transformer(n_layers=1).to(dtype)
    layer = transformer.layers[0].feed_forward
    x_BLE = torch.randn(2, length, 64, generator=torch.Generator().manual_seed(length)).to(dtype)
    with torch.no_grad(), ExitStack() as undo:
        whole = layer(x_BLE)
        chunk_feed_forward(transformer, chunks, undo)
        assert torch.equal(layer(x_BLE), whole)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_a_prompt_is_read_once_and_others_are_not_confused_with_it(pipeline, expected):
    inner, calls = pipeline.text_encoder, []
    handle = inner.register_forward_pre_hook(lambda *_: calls.append(1))
    fresh = tiny_random.pipeline()
    apply(pipeline, MemoryProfile(embedding_cache=2))
    assert pixels(pipeline) == pixels(pipeline) == expected
    assert len(calls) == 2, "the prompt and the empty negative prompt"
    assert pixels(pipeline, "a blue bird") == pixels(fresh, "a blue bird")
    assert len(calls) == 3
    assert pixels(pipeline) == expected, "the first prompt had to go: two are remembered"
    assert len(pipeline.text_encoder) == 2
    handle.remove()


def test_a_hit_touches_no_weight(pipeline, expected, tmp_path):
    applied = apply(pipeline, MemoryProfile(evict_text_encoder=True), scratch=tmp_path)
    assert states(applied)["evict_text_encoder"] == ("applied", "memory.evict.disk")
    assert pixels(pipeline) == expected
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert pixels(pipeline) == expected
    applied.forget_prompts()
    with pytest.raises(FileNotFoundError):
        pixels(pipeline)


# --- weights on disk ------------------------------------------------------------------------------------------------


def test_two_models_in_one_scratch_folder_keep_their_own_weights(pipeline, expected, tmp_path):
    other = tiny_random.pipeline()
    with torch.no_grad():
        other.transformer.layers[0].feed_forward.w2.weight.mul_(3)
    different = pixels(other)
    profile = MemoryProfile(group_offload="block", group_offload_disk=True, evict_text_encoder=True)
    one, two = apply(pipeline, profile, scratch=tmp_path), apply(other, profile, scratch=tmp_path)
    assert (pixels(pipeline), pixels(other)) == (expected, different)
    one.undo(), two.undo()
    assert (pixels(pipeline), pixels(other)) == (expected, different)


# --- precision and quantised weights --------------------------------------------------------------------------------


def test_precision_is_cast_and_comes_back_bit_for_bit(pipeline, expected):
    before = everything(pipeline)
    applied = apply(pipeline, MemoryProfile(transformer_precision="bf16", text_encoder_precision="bf16"))
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    assert states(applied)["transformer_precision"] == ("applied", "memory.precision.is")
    assert pixels(pipeline) != expected
    applied.undo()
    assert everything(pipeline) == before


def test_float16_without_scaling_is_named_as_such_and_the_vae_stays_out_of_it(pipeline):
    found = states(apply(pipeline, MemoryProfile(transformer_precision="fp16", vae_precision="fp16")))
    assert found["transformer_precision"] == ("applied", "memory.precision.unscaled")
    assert found["vae_precision"] == ("refused", "memory.precision.white")
    assert pipeline.vae.dtype == torch.float32


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_without_torchao_the_remedy_is_named(pipeline, expected, kind):
    applied = apply(pipeline, MemoryProfile(quantization=kind))
    assert states(applied)["quantization"] == ("refused", "memory.torchao_missing")
    assert pixels(pipeline) == expected


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_torchao_quantises(pipeline, kind):
    applied = apply(pipeline, MemoryProfile(quantization=kind))
    (state,) = [s for s in applied.states if s.name == "quantization"]
    assert (state.state, state.values) == ("applied", {"value": kind})
    assert len(pixels(pipeline)) == 64
    assert applied.undo() == ("quantization",)


def test_four_bits_are_close_and_stay(pipeline):
    reference = tiny_random.draw(pipeline)
    applied = apply(pipeline, MemoryProfile(quantization="int4"))
    assert states(applied)["quantization"] == ("applied", "memory.quantised")
    error = (tiny_random.draw(pipeline) - reference).norm() / reference.norm()
    assert 0.001 < error < 0.2
    assert applied.undo() == ("quantization",)
    again = apply(pipeline, MemoryProfile(fp8_storage=True))
    assert states(again)["fp8_storage"] == ("refused", "memory.already_quantised")


def test_four_bits_round_to_the_nearest_of_sixteen_levels():
    from zimage_studio.core.memory.int4 import BITS, GROUP, Int4Linear

    linear = torch.nn.Linear(256, 48)
    small = Int4Linear(linear)
    groups = linear.weight.detach().unflatten(1, (-1, GROUP))
    step = (groups.amax(2) - groups.amin(2)) / 15
    error = (small.weight - linear.weight).abs().unflatten(1, (-1, GROUP)).amax(2)
    assert bool((error <= step * 0.55).all())
    stored = sum(b.numel() * b.element_size() for n, b in small.named_buffers() if n != "bias")
    assert stored * 8 == BITS * linear.weight.numel()
    assert torch.equal(small(torch.zeros(1, 256)), linear.bias[None])


# --- compilation ----------------------------------------------------------------------------------------------------


def test_without_a_compiler_compilation_is_refused(pipeline, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert states(apply(pipeline, MemoryProfile(compile=True)))["compile"] == ("refused", "memory.compile.no_compiler")


@pytest.mark.skipif(not switches_transformer.compiler(), reason="no C++ compiler")
def test_blocks_are_compiled_and_plain_again_after_undo(pipeline, expected):
    applied = apply(pipeline, MemoryProfile(compile=True, feed_forward_chunks=2))
    assert states(applied)["compile"] == ("applied", "memory.compile.is")
    assert applied.undo() == ()
    assert pixels(pipeline) == expected


# --- the rest -------------------------------------------------------------------------------------------------------


def test_an_error_while_applying_leaves_the_pipeline_as_it_was(pipeline, expected, tmp_path):
    before = everything(pipeline)
    (tmp_path / "file").write_text("in the way")
    profile = MemoryProfile(feed_forward_chunks=2, vae_tile_px=32, group_offload="block", group_offload_disk=True)
    with pytest.raises(OSError):
        apply(pipeline, profile, scratch=tmp_path / "file")
    assert everything(pipeline) == before
    assert pixels(pipeline) == expected


def test_profiles_can_follow_each_other(pipeline, expected, tmp_path):
    before = everything(pipeline)
    for name in ("streamed_leaves", "from_disk", "text_out_tiled", "in_turn", "exact"):
        apply(pipeline, PRESETS[name], scratch=tmp_path).undo()
    assert everything(pipeline) == before
    assert pixels(pipeline) == expected


def test_offloaded_components_are_loaded_into_ram():
    cuda = torch.device("cuda", 0)
    assert homes(EXACT, cuda) == {"text_encoder": cuda, "transformer": cuda, "vae": cuda}
    assert homes(PRESETS["text_out"], cuda) == {"text_encoder": CPU, "transformer": cuda, "vae": cuda}
    assert homes(PRESETS["streamed"], cuda) == {"text_encoder": CPU, "transformer": CPU, "vae": cuda}
    assert set(homes(PRESETS["in_turn"], cuda).values()) == {CPU}
    assert set(homes(replace(EXACT, fp8_storage=True), CPU).values()) == {CPU}
