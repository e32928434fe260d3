"""Every dialect is read from a sample in its own convention; hostile files get an answer or a sentence."""

import json
import struct
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.core import foreign_samples as samples
from tests.core.foreign_samples import CHINESE, NEGATIVE, chunk, exif, jpeg, png, user_comment, webp
from tests.core.worst_files import a_recipe
from tests.recipes import recipes
from zimage_studio.core.metadata.containers import read_picture_texts
from zimage_studio.core.metadata.exif import decode_comment
from zimage_studio.core.metadata.infotext import parse_infotext, to_infotext
from zimage_studio.core.metadata.inspect import inspect_file, inspect_text, inspect_texts
from zimage_studio.core.metadata.png import OWN_KEY, SIGNATURE, read_own_recipe
from zimage_studio.errors import UserError
from zimage_studio.records.request import ModelDefaults, Variation, parse_batch

COMMENT = 0x9286
FULL = {"prompt": CHINESE, "negative_prompt": NEGATIVE}
WANTED = {
    "a1111": FULL
    | {"prompt": f"{CHINESE}\n第二行", "steps": 8, "seed": 123456789, "guidance": 0.0, "width": 1024, "height": 768}
    | {"shift": 3.0, "model": "z_image_turbo_bf16"},
    "swarmui": FULL
    | {"steps": 8, "seed": 2**64 - 1, "guidance": 4.0, "width": 1024, "height": 1024, "shift": 3.0}
    | {"model": "OfficialStableDiffusion/z_image_turbo"},
    "invokeai": FULL
    | {"steps": 8, "seed": 99, "guidance": 0.0, "width": 1024, "height": 1024, "model": "Z-Image Turbo"},
    "fooocus": FULL
    | {"steps": 30, "seed": 77, "guidance": 3.0, "width": 1152, "height": 896, "model": "juggernautXL_v8"},
    "comfyui": {"prompt": CHINESE, "seed": 47447417949230, "steps": 8, "guidance": 0.0, "width": 1024, "height": 768}
    | {"shift": 3.0, "model": "z_image_turbo_bf16.safetensors"},
}
TEXTS = {
    "a1111": {"parameters": samples.A1111},
    "swarmui": {"parameters": samples.SWARM},
    "invokeai": {"invokeai_metadata": samples.INVOKE, "invokeai_graph": "{}"},
    "fooocus": {"parameters": samples.FOOOCUS, "fooocus_scheme": "fooocus"},
    "comfyui": {"prompt": json.dumps(samples.ksampler_graph()), "workflow": '{"nodes": [], "links": []}'},
}


@pytest.fixture
def inspect_bytes(tmp_path):
    def inspect(content: bytes, name: str = "x.png"):
        (tmp_path / name).write_bytes(content)
        found = inspect_file(tmp_path / name)
        for lang in ("en", "zh"):
            json.dumps(found.to_dict(lang), allow_nan=False).encode()
        return found

    return inspect


def why(found, field):
    return {c.reason: c.value for c in found.converted if c.field == field}


@pytest.mark.parametrize("dialect", TEXTS)
def test_a_png_of_every_dialect_is_read(inspect_bytes, dialect):
    found = inspect_bytes(png(**TEXTS[dialect]))
    assert (found.dialect, found.recipe) == (dialect, WANTED[dialect])
    fields = {key: value for key, value in found.recipe.items() if key != "model"}
    assert parse_batch(fields, ModelDefaults()).first.seed == found.recipe["seed"]


@pytest.mark.parametrize("dialect", ["a1111", "swarmui", "fooocus"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", ["utf-16-be", "utf-16-le", "utf-16", "utf-8"])
def test_a_jpeg_of_every_dialect_is_read(inspect_bytes, dialect, order, code):
    block = exif(
        {0x0131: b"software\0"}, inner={COMMENT: user_comment(TEXTS[dialect]["parameters"], code)}, order=order
    )
    found = inspect_bytes(jpeg(block), "x.jpg")
    assert (found.dialect, found.recipe) == (dialect, WANTED[dialect])
    assert found.unknown["Software"] == "software"


@pytest.mark.parametrize("dialect", ["a1111", "swarmui"])
def test_a_webp_of_every_dialect_is_read(inspect_bytes, dialect):
    found = inspect_bytes(webp(exif({}, inner={COMMENT: user_comment(TEXTS[dialect]["parameters"])})), "x.webp")
    assert (found.dialect, found.recipe) == (dialect, WANTED[dialect])


FORGE = FULL | {
    "steps": 8, "seed": 42, "guidance": 0.0, "width": 896, "height": 1152, "shift": 3.0, "model": "z_image_turbo_bf16",
}  # fmt: skip
SDNEXT = {"prompt": CHINESE, "negative_prompt": "", "steps": 9, "seed": 5, "guidance": 4.0} | {
    "width": 1024, "height": 1024, "model": "Z-Image",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"), [(samples.FORGE, FORGE), (samples.SDNEXT, SDNEXT)], ids=["forge", "sdnext"]
)
@pytest.mark.parametrize("container", ["png", "jpeg", "webp"])
def test_forge_and_sdnext_are_read_from_every_container(inspect_bytes, container, text, wanted):
    """Both write A1111's way: `parameters` in a PNG, UNICODE with the high byte first in a UserComment."""
    block = exif({}, inner={COMMENT: user_comment(text)})
    made = {"png": lambda: png(parameters=text), "jpeg": lambda: jpeg(block), "webp": lambda: webp(block)}
    found = inspect_bytes(made[container]())
    assert (found.dialect, found.recipe) == ("a1111", wanted)
    listed = (
        {"Distilled CFG Scale", "Diffusion in Low Bits", "Module 1", "Version"} if text == samples.FORGE else {"App"}
    )
    assert listed <= found.unknown.keys()


def test_comfyui_webp_keeps_its_graph_in_make_and_model(inspect_bytes):
    graph = json.dumps(samples.ksampler_graph()).encode()
    found = inspect_bytes(webp(exif({0x010F: b'workflow:{"nodes": []}\0', 0x0110: b"prompt:" + graph + b"\0"})))
    assert (found.dialect, found.recipe) == ("comfyui", WANTED["comfyui"])
    assert found.unknown["workflow"] == '{"nodes": []}'


def test_fooocus_keeps_its_scheme_in_the_makers_note(inspect_bytes):
    tags = {COMMENT: samples.FOOOCUS_A1111.encode(), 0x927C: b"a1111\0", 0x0131: b"Fooocus v2.5.5\0"}
    plain = png(parameters=samples.FOOOCUS_A1111, fooocus_scheme="a1111")
    for content in (jpeg(exif(tags)), webp(exif(tags)), plain):
        found = inspect_bytes(content)
        assert (found.dialect, found.recipe) == ("fooocus", WANTED["fooocus"])
        assert found.unknown["full prompt"] == f"cinematic still {CHINESE}"
        assert "meta.noise_gpu" not in why(found, "noise")


def test_a_comment_of_a_jpeg_is_read(inspect_bytes):
    found = inspect_bytes(jpeg(comment=samples.A1111.encode()))
    assert (found.dialect, found.recipe) == ("a1111", WANTED["a1111"])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (user_comment("Steps: 8", "ascii"), "Steps: 8"),
        (user_comment("日本語 Steps", "iso2022_jp"), "日本語 Steps"),
        (bytes(8) + "红色".encode(), "红色"),
        (b"caf\xe9", "café"),
        (b"", ""),
        (b"UNICODE\0\xd8", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_user_comments_are_decoded_by_their_prefix(raw, text):
    assert decode_comment(raw) == text


def test_the_format_is_told_by_content_not_by_name(inspect_bytes, tmp_path):
    found = inspect_bytes(jpeg(exif({}, inner={COMMENT: user_comment(samples.A1111)})), "really.png")
    assert found.dialect == "a1111"
    for content in (b"GIF89a", b"<svg/>", b"<html>", b"", b"RIFF\0\0\0\0AVI "):
        with pytest.raises(UserError, match="not a PNG, JPEG or WebP"):
            inspect_bytes(content)


def test_every_part_of_a_custom_sampler_is_followed():
    found = inspect_texts({"prompt": json.dumps(samples.custom_graph())})
    assert found.recipe == FULL | {
        "seed": 321, "steps": 30, "guidance": 4.0, "width": 512, "height": 512, "shift": 6.0,
        "model": "z_image.safetensors",
    }  # fmt: skip


def test_several_samplers_are_listed_not_guessed():
    graph = samples.ksampler_graph()
    graph["50"] = {"class_type": "KSampler", "inputs": graph["44"]["inputs"] | {"latent_image": ["44", 0]}}
    graph["51"] = {"class_type": "SaveImage", "inputs": {"images": ["50", 0]}}
    found = inspect_texts({"prompt": json.dumps(graph)})
    assert found.recipe is None
    assert why(found, "sampler") == {"meta.samplers": None}
    assert "seed" in found.unknown["44 KSampler"]


def test_a_sampler_that_no_saved_picture_needs_does_not_count():
    graph = samples.ksampler_graph()
    graph["50"] = {"class_type": "KSampler", "inputs": {"seed": 1}}
    assert inspect_texts({"prompt": json.dumps(graph)}).recipe["seed"] == 47447417949230


@pytest.mark.parametrize(
    ("node", "inputs", "field", "reason"),
    [
        ("44", {"seed": ["99", 0]}, "seed", "meta.linked"),
        ("44", {"denoise": 0.5}, "denoise", "meta.second_pass"),
        ("44", {"sampler_name": "dpmpp_2m"}, "sampler", "meta.sampler_other"),
        ("44", {"scheduler": "beta"}, "scheduler", "meta.scheduler_other"),
        ("44", {"latent_image": ["43", 0]}, "size", "meta.second_pass"),
        ("44", {"positive": ["42", 0]}, "prompt", "meta.zeroed_off"),
        ("44", {"positive": ["39", 0]}, "prompt", "meta.node_unknown"),
        ("44", {"model": ["39", 0]}, "model", "meta.node_unknown"),
        ("41", {"batch_size": 4}, "count", "meta.batch"),
        ("45", {"text": ["39", 0]}, "prompt", "meta.linked"),
        ("41", {"width": 1000}, "width", "meta.side"),
        ("41", {"width": 10**9}, "size", "out_of_range"),
        ("44", {"seed": -1}, "seed", "out_of_range"),
        ("44", {"seed": 2**64}, "seed", "out_of_range"),
        ("44", {"steps": 8.5}, "steps", "bad_whole"),
        ("44", {"cfg": 0.5}, "guidance", "meta.cfg_below_one"),
        ("44", {"cfg": 1e30}, "guidance", "out_of_range"),
        ("44", {"cfg": "x"}, "guidance", "bad_number"),
    ],
)
def test_what_cannot_be_taken_from_a_graph_is_listed_with_its_reason(node, inputs, field, reason):
    graph = samples.ksampler_graph()
    graph[node]["inputs"] |= inputs
    found = inspect_texts({"prompt": json.dumps(graph)})
    assert reason in why(found, field)
    assert found.to_dict("zh")["converted"]


def test_graphs_that_bite_their_tail_end():
    graph = samples.ksampler_graph()
    graph["47"]["inputs"]["model"] = ["47", 0]
    graph["41"]["inputs"]["width"] = ["60", 0]
    graph["60"] = {"class_type": "Reroute", "inputs": {"": ["60", 0]}}
    assert inspect_texts({"prompt": json.dumps(graph)}).dialect == "comfyui"


def test_nan_in_a_graph_is_no_obstacle():
    """ComfyUI writes `"is_changed": [NaN]` into good files."""
    graph = samples.ksampler_graph()
    graph["46"]["is_changed"] = [float("nan")]
    graph["47"]["inputs"]["shift"] = float("inf")
    found = inspect_texts({"prompt": json.dumps(graph)})
    assert found.recipe["seed"] == 47447417949230
    assert "shift" not in found.recipe
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_editors_own_file_is_named_not_guessed():
    found = inspect_texts({"workflow": '{"nodes": [], "links": []}'})
    assert (found.dialect, found.recipe) == ("comfyui", None)
    assert why(found, "workflow") == {"meta.workflow_only": None}


@pytest.mark.parametrize(
    ("last_line", "reason", "value"),
    [
        ("Steps: 8, Seed: 1, Size: 512x512", "meta.noise_gpu", None),
        ("Steps: 8, Seed: 1, Size: 512x512, RNG: NV", "meta.noise_other", None),
        ("Steps: 8, Seed: 1, Size: 512x512, RNG: CPU", "meta.same", "cpu"),
        ("Steps: 8, Seed: 1, Size: 512x512, App: SD.Next", "meta.noise_unknown", None),
    ],
)
def test_where_the_noise_was_drawn_is_said(last_line, reason, value):
    assert why(inspect_text(f"a cat\n{last_line}"), "noise") == {reason: value}


def test_sdnext_counts_guidance_as_diffusers_does_and_its_steps_stay():
    found = inspect_text(samples.SDNEXT)
    assert (found.recipe["guidance"], found.recipe["steps"]) == (4.0, 9)
    assert why(found, "guidance") == {"meta.cfg_diffusers": 4.0}
    assert why(found, "steps") == {"meta.steps_hint": 9}
    found = inspect_text(samples.SDNEXT.replace("CFG scale: 4", "CFG scale: 1"))
    assert "guidance" not in found.recipe
    assert why(found, "guidance") == {"meta.cfg_up_to_one": None}


@pytest.mark.parametrize(
    ("version", "steps"), [("0.36.0", 8), ("0.38.9", 8), ("0.39.0", 9), ("0.42.1", 9), ("1.0", 9), ("x", 9)]
)
def test_nine_old_steps_are_eight_only_where_the_version_says_so(version, steps):
    found = inspect_text(f"a cat\nSteps: 9, Seed: 1, Size: 512x512, diffusers: {version}")
    assert found.recipe["steps"] == steps
    assert ("meta.old_steps" in why(found, "steps")) == (steps == 8)


def test_two_values_are_read_where_no_prompt_has_such_a_line():
    found = inspect_text("a cat\nSteps: 8, Seed: 5")
    assert found.recipe == {"prompt": "a cat", "negative_prompt": "", "steps": 8, "seed": 5}
    assert why(found, "parameters") == {"meta.few_pairs": None}
    assert inspect_text("a cat\nmood: calm, light: soft").recipe is None


def test_quoted_values_stay_whole():
    found = inspect_text('a\nSteps: 8, Seed: 5, Size: 512x512, Extra: "{\\"a\\": 1, \\"Steps: 9\\"}", RNG: CPU')
    assert found.recipe["steps"] == 8
    assert found.unknown == {"Extra": '{"a": 1, "Steps: 9"}'}


def test_loras_and_variations_are_named():
    found = inspect_text("a cat <lora:pixel:0.8>\nSteps: 8, Seed: 5, Size: 512x512, Variation seed: 4")
    assert "meta.lora" in why(found, "prompt")
    assert "meta.variation" in why(found, "Variation seed")


def test_a_variation_of_a1111_is_taken_over_whole_or_listed():
    last_line = "Steps: 8, Seed: 5, Size: 512x512, RNG: CPU, Variation seed: 4, Variation seed strength: "
    found = inspect_text(f"a cat\n{last_line}0.25")
    assert found.recipe["variations"] == [{"seed": 4, "strength": 0.25}]
    (link,) = parse_batch({**found.recipe}, ModelDefaults()).first.variations
    assert (link.seed, link.strength) == (4, 0.25)
    assert not found.unknown
    for bad, reason in (
        ("1.5", "out_of_range"),
        ("x", "bad_number"),
        ("0.2, Seed resize from: 64x64", "meta.variation"),
    ):
        found = inspect_text(f"a cat\n{last_line}{bad}")
        assert "variations" not in found.recipe
        assert {"Variation seed", "Variation seed strength"} <= found.unknown.keys()
        assert reason in {c.reason for c in found.converted}


def test_our_own_infotext_says_what_is_more_than_text_and_noise():
    link, other = Variation(seed=4, strength=0.25), Variation(seed=6, strength=1.0)
    plain = a_recipe()

    def read(**changes):
        return inspect_text(to_infotext(replace(plain, request=replace(plain.request, **changes))))

    assert not read().unknown.keys() & {"Variation seed", "Variations", "Variety", "Denoising strength"}
    assert read(variations=(link,)).recipe["variations"] == [{"seed": 4, "strength": 0.25}]
    assert read(variations=(link, other)).unknown["Variations"] == "4 0.25, 6 1.0"
    assert read(variety=0.5).recipe["variety"] == 0.5
    assert "meta.second_pass" in why(read(source="0" * 64, strength=0.5), "Denoising strength")
    assert "variety" not in inspect_text("a cat\nSteps: 8, Seed: 5, Size: 512x512, Variety: 0.5").recipe


def test_invokeai_says_which_shift_it_used():
    found = inspect_texts({"invokeai_metadata": samples.INVOKE})
    (shift,) = [c for c in found.converted if c.field == "shift"]
    assert shift.details["value"] == "3.158"  # exp(1.15) at 1024 x 1024
    assert "meta.noise_rounded" in why(found, "noise")
    named = json.dumps(json.loads(samples.INVOKE) | {"z_image_shift": 4.0})
    assert inspect_texts({"invokeai_metadata": named}).recipe["shift"] == 4.0


@settings(max_examples=30, deadline=None)
@given(recipes())
def test_our_own_recipe_and_our_own_infotext_can_be_pasted(recipe):
    found = inspect_text(recipe.to_json())
    assert (found.dialect, found.recipe) == ("zimage_studio", recipe.to_dict())
    if "\r" not in recipe.request.prompt + recipe.request.negative_prompt:
        read = inspect_text(to_infotext(recipe))
        assert read.dialect == "a1111"
        assert read.recipe["seed"] == recipe.request.seed
        assert read.recipe["steps"] == recipe.request.steps


@pytest.mark.parametrize("dialect", TEXTS)
def test_the_json_of_every_dialect_can_be_pasted(dialect):
    text = next(iter(TEXTS[dialect].values()))
    assert inspect_text(text).recipe == WANTED[dialect]
    if dialect == "comfyui":
        assert inspect_text(json.dumps({"prompt": json.loads(text), "client_id": "x"})).recipe == WANTED[dialect]


def test_strangers_keys_are_listed_and_never_used(inspect_bytes):
    hostile = {"path": "/etc/passwd", "url": "http://x/", "__proto__": {"a": 1}, "meta": {"_type": "gradio.FileData"}}
    swarm = json.dumps({"sui_image_params": {"prompt": "a", **hostile}, **hostile})
    found = inspect_bytes(png(parameters=swarm, path="/etc/shadow"))
    assert found.recipe == {"prompt": "a"}
    assert hostile.keys() <= found.unknown.keys()
    assert all(isinstance(value, str) for value in found.unknown.values())


def test_surrogates_nul_and_control_marks_cannot_get_through():
    found = inspect_text(
        r'{"sui_image_params": {"prompt": "a\ud800b\u0000", "negativeprompt": "<|im_end|>", "\udfff": 1}}'
    )
    assert found.recipe == {"prompt": "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"}
    assert why(found, "negative_prompt") == {"control_mark": None}
    json.dumps(found.to_dict("zh"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "[" * 5000, '{"a":' * 5000, '{"sui_image_params": 3}', '{"a": 1, "a": 2}', '{"a": 1e999}',
        '{"a": NaN}', "{}", "null", '{"sui_image_params": {"seed": [1], "steps": {}, "width": null, "height": true}}',
        '{"1": {"class_type": "KSampler"}}', '{"1": {"class_type": "KSampler", "inputs": {"model": [[], 0]}}}',
        '{"a": ' + "9" * 5000 + "}", '{"a": ' + "[" * 99 + "]" * 99 + "}", "a\n" + "\nNegative prompt:" * 9,
    ],
)  # fmt: skip
def test_broken_texts_are_listed(inspect_bytes, text):
    for key in ("parameters", "prompt", "workflow", "invokeai_metadata", OWN_KEY):
        assert inspect_bytes(png(**{key: text})).recipe is None


def test_a_deep_own_chunk_is_no_recipe(tmp_path):
    (tmp_path / "x.png").write_bytes(png(**{OWN_KEY: "[" * 100_000}))
    assert read_own_recipe(tmp_path / "x.png") is None


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\x01", b"\xff\xd8\xff\xe1\xff\xffExif\0\0", b"\xff\xd8" + b"\xff" * 50_000,
        b"\xff\xd8" + b"\xff\xd0" * 20_001 + b"\xff\xd9", b"\xff\xd8\xff\xe1\0\x08Exif\0\0",
        b"RIFF\xff\xff\xff\xffWEBPEXIF\xff\xff\xff\xff", b"RIFF\0\0\0\0WEBPEXIF\x04\0\0\0abcd",
        b"RIFF\0\0\0\0WEBP" + b"JUNK\0\0\0\0" * 20_001, SIGNATURE + chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        SIGNATURE + chunk(b"eXIf", b"MM\0*" + struct.pack(">IH", 8, 65535)),
        SIGNATURE + chunk(b"eXIf", exif({COMMENT: b"12345"})[:-3]),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(inspect_bytes, content):
    with pytest.raises(UserError, match=r"cannot be read"):
        inspect_bytes(content)


@pytest.mark.parametrize(
    "text",
    [
        "a\n" + "a" * 90_000, "a\nx" + " " * 90_000 + "y", "a\n" + 'aa:"' * 20_000, "a\n" + "aa: " * 20_000,
        "a\n" + "b" * (2**20 - 100) + ": 1, c: 2, d: 3", '{"prompt": [' + "{}," * 300_000 + "{}]}",
        '{"1": {"class_type": "KSampler", "inputs": {' + ",".join(f'"k{i}": ["{i}", 0]' for i in range(50_000)) + "}}}",
        "{" + ",".join(f'"{i}": {{"class_type": "LoraLoader{i}", "inputs": {{"model": ["{i + 1}", 0]}}}}'
                       for i in range(20_000)) + "}",
        "<lora:" * 150_000 + "\nSteps: 8, Seed: 1, Size: 512x512",
    ],
    ids=["word", "spaces", "quotes", "pairs", "key", "objects", "links", "nodes", "loras"],
)  # fmt: skip
def test_long_texts_take_no_longer_than_they_are_long(text):
    began = time.process_time()
    tracemalloc.start() if len(text) < 10**5 else None
    inspect_text(text)
    assert time.process_time() - began < 1.0
    if tracemalloc.is_tracing():
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
        tracemalloc.stop()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", "euler", "-1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LINKS = st.builds(lambda node, slot: [node, slot], st.sampled_from("123456"), st.integers(0, 2))
KINDS = ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "CFGGuider", "BasicGuider",
         "RandomNoise", "BasicScheduler", "KSamplerSelect", "CLIPTextEncode", "EmptySD3LatentImage", "LoraLoader",
         "ModelSamplingAuraFlow", "UNETLoader", "Reroute", "PrimitiveInt", "SaveImage", "?"]  # fmt: skip
INPUTS = ["seed", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "positive", "negative", "model",
          "latent_image", "noise", "guider", "sampler", "sigmas", "text", "width", "height", "shift", "value", "images",
          "conditioning", "unet_name", "start_at_step", "end_at_step", "batch_size", "add_noise"]  # fmt: skip
GRAPHS = st.dictionaries(
    st.sampled_from("123456"),
    st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(KINDS),
            "inputs": st.dictionaries(st.sampled_from(INPUTS), LINKS | VALUES, max_size=10),
        }
    ),
    max_size=6,
)
FLAT = st.dictionaries(
    st.sampled_from([*json.loads(samples.SWARM)["sui_image_params"], *json.loads(samples.INVOKE),
                     *json.loads(samples.FOOOCUS), "rand_device", "z_image_shift", "diffusers"]), VALUES, max_size=10,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(GRAPHS | FLAT | FLAT.map(lambda flat: {"sui_image_params": flat}), st.sampled_from(sorted(TEXTS)))
def test_any_json_gives_a_recipe_that_a_door_accepts(data, key):
    text = json.dumps(data)
    for texts in ({"parameters": text}, {"prompt": text}, {"invokeai_metadata": text}):
        found = inspect_texts(texts)
        json.dumps(found.to_dict("zh"), ensure_ascii=False, allow_nan=False).encode()
        fields = {name: value for name, value in (found.recipe or {}).items() if name != "model"}
        if isinstance(fields.get("prompt"), str) and fields["prompt"].strip():
            parse_batch({**fields}, ModelDefaults())


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40), st.lists(st.tuples(st.sampled_from(
    ["Steps", "Seed", "Size", "CFG scale", "Sampler", "RNG", "Shift", "Model", "App", "Pipeline", "diffusers", "x y"]),
    st.text(max_size=12) | st.integers().map(str) | st.floats().map(str) | st.just("1x1")), max_size=8))  # fmt: skip
def test_any_infotext_gives_an_answer(prompt, pairs):
    text = f"{prompt}\n" + ", ".join(f"{key}: {value}" for key, value in pairs)
    found = inspect_text(text)
    json.dumps(found.to_dict("zh"), ensure_ascii=False, allow_nan=False).encode()
    parse_infotext(text)


@settings(max_examples=120, deadline=None)
@given(
    start=st.sampled_from([SIGNATURE, b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\x40Exif\0\0MM\0*", b"RIFF\0\0\0\0WEBP",
                           b"RIFF\0\0\0\0WEBPEXIF\x40\0\0\0II*\0\x08\0\0\0"]),
    body=st.binary(max_size=200),
)  # fmt: skip
@example(start=SIGNATURE, body=chunk(b"zTXt", b"a\0\0"))
def test_any_file_gives_an_answer_or_a_sentence(start, body, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(start + body)
    try:
        inspect_file(path)
    except UserError as error:
        assert error.text("zh")


REAL = [
    png(**TEXTS["a1111"]),
    png(**TEXTS["comfyui"]),
    jpeg(exif({}, inner={COMMENT: user_comment(samples.SWARM)})),
    webp(exif({0x0110: b"prompt:" + json.dumps(samples.custom_graph()).encode()}, order="<")),
]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_real_file_with_a_few_bytes_changed_gives_an_answer_or_a_sentence(data, tmp_path_factory):
    content = bytearray(data.draw(st.sampled_from(REAL)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.bin"
    path.write_bytes(bytes(content))
    try:
        json.dumps(inspect_file(path).to_dict(), allow_nan=False)
        read_picture_texts(path)
    except UserError as error:
        assert error.text("zh")
