"""A whole ZImagePipeline folder of half a million random parameters, with the real classes and the real wiring."""

from pathlib import Path

import gguf
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

CAPTION_WIDTH = 32
TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
TO_COMFY = (
    ("all_final_layer.2-1.", "final_layer."),
    ("all_x_embedder.2-1.", "x_embedder."),
    (".attention.to_out.0.", ".attention.out."),
    (".attention.norm_k.", ".attention.k_norm."),
    (".attention.norm_q.", ".attention.q_norm."),
)


def transformer(**changes: object) -> ZImageTransformer2DModel:
    """A random transformer in which every tensor matters (norms are not 1, pad tokens not 0)."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4, "dim": 64, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4,
        "cap_feat_dim": CAPTION_WIDTH, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32],
    }  # fmt: skip
    model = ZImageTransformer2DModel(**{**config, **changes}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.uniform_(0.7, 1.3)
            if name.endswith("pad_token"):
                parameter.normal_(0, 0.5)
    return model


def text_encoder() -> Qwen3Model:
    torch.manual_seed(1)
    return Qwen3Model(
        Qwen3Config(
            vocab_size=300,
            hidden_size=CAPTION_WIDTH,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=512,
        )
    ).eval()


def tokenizer() -> Qwen2Tokenizer:
    vocab = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    for mark in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocab[mark] = len(vocab)
    made = Qwen2Tokenizer(
        vocab=vocab, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def vae() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=[8, 8, 8, 8], down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        sample_size=64, scaling_factor=0.36, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def pipeline(*, shift: float = 3.0, **changes: object) -> ZImagePipeline:
    """The whole of it; `changes` go to the transformer's config."""
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift),
        vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(), transformer=transformer(**changes),
    )  # fmt: skip


def draw(pipe: ZImagePipeline, *, seed: int = 7, guidance: float = 2.0) -> Tensor:
    """The final latent of two steps at 64×64."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a red fish, 红色的鱼", height=64, width=64, num_inference_steps=2, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed), output_type="latent", return_dict=False,
    )[0]  # fmt: skip


def comfy_tensors(model: ZImageTransformer2DModel, prefix: str = "") -> dict[str, Tensor]:
    """The transformer under ComfyUI's names, q/k/v fused."""
    tensors = model.state_dict()
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attention.to_k." in name or ".attention.to_v." in name:
            continue
        if ".attention.to_q." in name:
            tensor = torch.cat([tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")])
            name = name.replace("to_q", "qkv")
        for ours, theirs in TO_COMFY:
            name = name.replace(ours, theirs)
        named[prefix + name] = tensor.contiguous()
    return named


def write_comfy(model: ZImageTransformer2DModel, path: Path, prefix: str = "") -> Path:
    save_file(comfy_tensors(model, prefix), path, metadata={"format": "pt"})
    return path


def write_gguf(model: ZImageTransformer2DModel, path: Path, kind: str = "F32", *, flat_pads: bool = False) -> Path:
    """As llama.cpp's family of tools writes it; `flat_pads` stores pad tokens as (D,), as some exporters do."""
    quantised = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, arch="lumina2")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in comfy_tensors(model).items():
        array = tensor.detach().float().numpy()
        if flat_pads and name.endswith("pad_token"):
            array = array[0]
        inner = array.ndim == 2 and array.shape[-1] % 32 == 0 and "layers" in name and "adaLN" not in name
        kind_here = quantised if inner else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array, kind_here), raw_dtype=kind_here)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
