"""What other programs write, in their own conventions: texts, and the three kinds of file that hold them."""

import io
import json
import struct
import zlib

from PIL import Image
from PIL.PngImagePlugin import PngInfo

CHINESE = "一只红色的猫坐在窗台上，阳光，8K"
NEGATIVE = "模糊, 低质量"

A1111 = (
    f"{CHINESE}\n第二行\nNegative prompt: {NEGATIVE}\n"
    "Steps: 8, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 123456789, Size: 1024x768, "
    "Model hash: 2407613050, Model: z_image_turbo_bf16, RNG: CPU, Shift: 3, "
    'Lora hashes: "a: 12, b: 34", Version: v1.10.1'
)
FORGE = (
    f"{CHINESE}\nNegative prompt: {NEGATIVE}\n"
    "Steps: 8, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Shift: 3, Seed: 42, "
    "Size: 896x1152, Model hash: 2407613050, Model: z_image_turbo_bf16, RNG: CPU, "
    "Diffusion in Low Bits: Automatic (fp16 LoRA), Version: neo, Module 1: ae, Module 2: qwen_3_4b"
)
SDNEXT = (
    f"{CHINESE}\nNegative prompt: \nSteps: 9, Size: 1024x1024, Sampler: Euler FlowMatch, Seed: 5, CFG scale: 4, "
    "App: SD.Next, Version: abc123, Pipeline: ZImagePipeline, Operations: txt2img, Model: Z-Image"
)
SWARM = json.dumps(
    {
        "sui_image_params": {
            "prompt": CHINESE,
            "negativeprompt": NEGATIVE,
            "model": "OfficialStableDiffusion/z_image_turbo",
            "seed": 18446744073709551615,
            "steps": "8.0",
            "cfgscale": 5.0,
            "width": 1024,
            "height": 1024,
            "sigmashift": 3.0,
            "sampler": "euler",
            "scheduler": "simple",
            "swarm_version": "0.9.8.0",
        },
        "sui_extra_data": {"date": "2026-01-01"},
    },
    ensure_ascii=False,
    indent=2,
)
INVOKE = json.dumps(
    {
        "app_version": "6.10.0",
        "generation_mode": "z_image_txt2img",
        "positive_prompt": CHINESE,
        "negative_prompt": NEGATIVE,
        "width": 1024,
        "height": 1024,
        "seed": 99,
        "steps": 8,
        "cfg_scale": 1.0,
        "scheduler": "euler",
        "model": {"key": "k", "hash": "blake3:00", "name": "Z-Image Turbo", "base": "z-image", "type": "main"},
    },
    ensure_ascii=False,
)
FOOOCUS = json.dumps(
    {
        "adm_guidance": "(1.5, 0.8, 0.3)",
        "base_model": "juggernautXL_v8",
        "full_prompt": [CHINESE, "cinematic still"],
        "guidance_scale": 4.0,
        "metadata_scheme": "fooocus",
        "negative_prompt": NEGATIVE,
        "performance": "Speed",
        "prompt": CHINESE,
        "resolution": "(1152, 896)",
        "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
        "seed": "77",
        "steps": 30,
        "version": "Fooocus v2.5.5",
    }
)
FOOOCUS_A1111 = (
    f"cinematic still {CHINESE}\nNegative prompt: anime, {NEGATIVE}\n"
    "Steps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 77, Size: 1152x896, CFG scale: 4, Sharpness: 2, "
    f"Model: juggernautXL_v8, Performance: Speed, Scheduler: karras, Raw prompt: {CHINESE}, "
    f'Raw negative prompt: "{NEGATIVE}", Version: Fooocus v2.5.5'
)


def ksampler_graph() -> dict:
    """The graph that ComfyUI's Z-Image-Turbo template sends."""
    return {
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "z-image", "images": ["43", 0]}},
        "39": {"class_type": "CLIPLoader", "inputs": {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}},
        "40": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "41": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
        "42": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["45", 0]}},
        "43": {"class_type": "VAEDecode", "inputs": {"samples": ["44", 0], "vae": ["40", 0]}},
        "44": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 47447417949230, "steps": 8, "cfg": 1, "sampler_name": "euler", "scheduler": "simple",
                "denoise": 1, "model": ["47", 0], "positive": ["45", 0], "negative": ["42", 0],
                "latent_image": ["41", 0],
            },
        },
        "45": {"class_type": "CLIPTextEncode", "inputs": {"text": CHINESE, "clip": ["39", 0]}},
        "46": {"class_type": "UNETLoader", "inputs": {"unet_name": "z_image_turbo_bf16.safetensors"}},
        "47": {"class_type": "ModelSamplingAuraFlow", "inputs": {"shift": 3, "model": ["46", 0]}},
    }  # fmt: skip


def custom_graph() -> dict:
    """The same with every part of the sampler as a node of its own, and a seed that comes from a primitive."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "z_image.safetensors"}},
        "2": {"class_type": "ModelSamplingSD3", "inputs": {"shift": 6.0, "model": ["1", 0]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": CHINESE}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": NEGATIVE}},
        "5": {"class_type": "CFGGuider", "inputs": {
            "cfg": 5.0, "model": ["2", 0], "positive": ["3", 0], "negative": ["11", 0]}},
        "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": ["7", 0]}},
        "7": {"class_type": "PrimitiveInt", "inputs": {"value": 321}},
        "8": {"class_type": "BasicScheduler", "inputs": {
            "scheduler": "simple", "steps": 30, "denoise": 1.0, "model": ["2", 0]}},
        "9": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "10": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "11": {"class_type": "Reroute", "inputs": {"": ["4", 0]}},
        "12": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["6", 0], "guider": ["5", 0], "sampler": ["9", 0], "sigmas": ["8", 0],
            "latent_image": ["10", 0]}},
        "13": {"class_type": "SaveImage", "inputs": {"images": ["12", 0]}},
    }  # fmt: skip


def png(**texts: str) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text) if not text.isascii() else info.add_text(key, text)
    return _saved("PNG", pnginfo=info)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def user_comment(text: str, code: str = "utf-16-be") -> bytes:
    prefix = {"ascii": b"ASCII\0\0\0", "utf-8": b"", "iso2022_jp": b"JIS\0\0\0\0\0"}.get(code, b"UNICODE\0")
    return prefix + text.encode(code)


def exif(tags: dict[int, bytes], *, inner: dict[int, bytes] | None = None, order: str = ">") -> bytes:
    """An EXIF block written by hand, so that the byte order and the place of each tag are ours to choose."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    count = len(tags) + bool(inner)
    body_at = 8 + 2 + 12 * count + 4
    inner_at = body_at + sum(len(raw) for raw in tags.values())
    entries, body = b"", b""
    for tag, raw in tags.items():
        entries += _entry(order, tag, raw, body_at + len(body))
        body += raw
    if inner:
        entries += struct.pack(f"{order}HHII", 0x8769, 4, 1, inner_at)
        start = inner_at + 2 + 12 * len(inner) + 4
        block, held = struct.pack(f"{order}H", len(inner)), b""
        for tag, raw in inner.items():
            block += _entry(order, tag, raw, start + len(held))
            held += raw
        body += block + bytes(4) + held
    return head + struct.pack(f"{order}H", count) + entries + bytes(4) + body


def _entry(order: str, tag: int, raw: bytes, at: int) -> bytes:
    assert len(raw) > 4, "shorter values stand in the entry itself"
    return struct.pack(f"{order}HHII", tag, 7, len(raw), at)


def jpeg(block: bytes | None = None, comment: bytes | None = None) -> bytes:
    more = {} if comment is None else {"comment": comment}
    return _saved("JPEG", **more) if block is None else _saved("JPEG", exif=b"Exif\0\0" + block, **more)


def webp(block: bytes) -> bytes:
    return _saved("WEBP", exif=block)


def _saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, kind, **options)
    return buffer.getvalue()
