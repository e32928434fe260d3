"""The parts of the embedded model, untrained: tokenizer, text encoder, VAE, transformer, scheduler."""

import json

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from zimage_studio.core.drawn.captions import words

LATENT_CHANNELS = 8
CAPTION_DIM = 128
VOCABULARY = 1024
SCHEDULER_SHIFT = 2.0
CHAT_TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE over the word list, with Qwen's pre-tokenizer, special tokens and chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(words(), trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def templated(tokenizer: Qwen2Tokenizer, prompt: str) -> str:
    """`prompt` as ZImagePipeline hands it to the tokenizer."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )


def build_text_encoder(vocabulary: int, pad_token_id: int) -> Qwen3Model:
    """Three layers, of which Z-Image reads the second (`hidden_states[-2]`)."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=CAPTION_DIM,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        pad_token_id=pad_token_id,
        attention_dropout=0.0,
        tie_word_embeddings=True,
    )
    encoder = Qwen3Model(config)
    nn.init.normal_(encoder.embed_tokens.weight, std=0.3)  # the usual .02 drowns the identity of the words early on
    return encoder


def build_vae() -> AutoencoderKL:
    """Factor 8, 8 latent channels. The second convolution of every residual block starts at zero."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 48, 64],
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=True,
        use_post_quant_conv=True,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return vae


def build_transformer() -> ZImageTransformer2DModel:
    """192 wide, 6 heads of 32, 6 layers, 1 refiner of each kind; 5.1 M parameters."""
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=192,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=CAPTION_DIM,
        axes_dims=[8, 12, 12],
        axes_lens=[640, 64, 64],
        rope_theta=256.0,
        t_scale=1000.0,
    )
    final = transformer.all_final_layer["2-1"].linear
    nn.init.zeros_(final.weight)
    nn.init.zeros_(final.bias)
    with torch.no_grad():  # torch.empty in diffusers: uninitialised memory, possibly NaN
        transformer.cap_pad_token.normal_(std=0.02)
        transformer.x_pad_token.normal_(std=0.02)
    return transformer


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching with a static time shift, as Z-Image-Turbo has it."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SCHEDULER_SHIFT, use_dynamic_shifting=False)
