"""Z-Image's attention with a choice of kernel, and queries in pieces where the kernel is quadratic."""

import functools
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

# Shapes: B batch, L sequence, H heads, D head width, E model width

BACKENDS = {
    "native": AttentionBackendName.NATIVE,
    "native_math": AttentionBackendName._NATIVE_MATH,
    "native_efficient": AttentionBackendName._NATIVE_EFFICIENT,
    "native_flash": AttentionBackendName._NATIVE_FLASH,
    "native_cudnn": AttentionBackendName._NATIVE_CUDNN,
    "flash": AttentionBackendName.FLASH,
    "flash_3": AttentionBackendName._FLASH_3,
    "sage": AttentionBackendName.SAGE,
    "xformers": AttentionBackendName.XFORMERS,
}
NAMES = {backend: name for name, backend in BACKENDS.items()}
MASKLESS = frozenset({"native_flash", "flash", "flash_3", "sage"})
PROBE_TOKENS = 64


class PiecewiseAttention(ZSingleStreamAttnProcessor):
    """The same attention as diffusers' processor, `query_chunk` queries at a time (0: all at once).

    Each query's softmax runs over all keys, so cutting the queries changes no result; scores of (chunk, L) instead of
    (L, L) are alive. A kernel that takes no mask is left for torch's own when there is one: with guidance, prompts of
    different length need it.
    """

    def __init__(self, backend: AttentionBackendName | None, query_chunk: int) -> None:
        super().__init__()
        self._attention_backend = backend
        self.query_chunk = query_chunk

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        q_BLHD, k_BLHD, v_BLHD = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        q_BLHD = _rotated(_normed(attn.norm_q, q_BLHD), freqs_cis)
        k_BLHD = _rotated(_normed(attn.norm_k, k_BLHD), freqs_cis)
        mixed_BLHD = self._attend(q_BLHD, k_BLHD, v_BLHD, _keys_only(attention_mask))
        out_BLE = mixed_BLHD.flatten(2, 3).to(q_BLHD.dtype)
        for layer in attn.to_out:
            out_BLE = layer(out_BLE)
        return out_BLE

    def _attend(self, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, mask: Tensor | None) -> Tensor:
        backend = self._attention_backend
        if mask is not None and backend is not None and NAMES.get(backend) in MASKLESS:
            backend = AttentionBackendName.NATIVE
        attend = functools.partial(dispatch_attention_fn, attn_mask=mask, backend=backend)
        step = self.query_chunk
        if not 0 < step < q_BLHD.shape[1]:
            return attend(q_BLHD, k_BLHD, v_BLHD)
        mixed_BLHD = torch.empty_like(q_BLHD)
        for start in range(0, q_BLHD.shape[1], step):
            piece = slice(start, start + step)
            mixed_BLHD[:, piece] = attend(q_BLHD[:, piece], k_BLHD, v_BLHD)
        return mixed_BLHD


def _normed(norm: nn.Module | None, x_BLHD: Tensor) -> Tensor:
    return x_BLHD if norm is None else norm(x_BLHD)


def _rotated(x_BLHD: Tensor, freqs_cis: Tensor | None) -> Tensor:
    """Rotary positions: neighbouring pairs as complex numbers, turned in float32. `freqs_cis` is (B, L, D / 2)."""
    if freqs_cis is None:
        return x_BLHD
    with torch.amp.autocast("cuda", enabled=False):
        pairs = torch.view_as_complex(x_BLHD.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * freqs_cis[:, :, None]).flatten(3).to(x_BLHD.dtype)


def _keys_only(mask_BL: Tensor | None) -> Tensor | None:
    """(B, L) over keys as (B, 1, 1, L), which broadcasts over heads and queries, in pieces or not."""
    return mask_BL[:, None, None, :] if mask_BL is not None and mask_BL.ndim == 2 else mask_BL


def attentions(transformer: nn.Module) -> list[Any]:
    """Every attention layer of the transformer's blocks."""
    from zimage_studio.core.memory.site import blocks

    return [block.attention for block in blocks(transformer)]


def backend_of(transformer: nn.Module) -> str:
    """The name of the live backend; `native` when none is set."""
    backend = attentions(transformer)[0].processor._attention_backend
    return "native" if backend is None else NAMES.get(backend, str(getattr(backend, "value", backend)))


def kernel_of(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """What computes: `math` holds all scores at once, every other kernel needs memory in step with the sequence.

    For `native`, torch is asked which kernel it takes for such tensors; `unknown` where it cannot say.
    """
    if backend != "native":
        return backend.removeprefix("native_")
    probe_BHLD = torch.empty(1, 1, PROBE_TOKENS, head_dim, device=device, dtype=dtype)
    try:
        choice = SDPBackend(torch._fused_sdp_choice(probe_BHLD, probe_BHLD, probe_BHLD))
    except (RuntimeError, NotImplementedError):  # kinds of devices whose kernels are not chosen this way
        return "unknown"
    return str(choice.name).removesuffix("_ATTENTION").lower()


def probe(backend: AttentionBackendName, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Run the kernel once on a few tokens. Raises whatever it raises where it cannot run."""
    x_BLHD = torch.zeros(1, PROBE_TOKENS, 2, head_dim, device=device, dtype=dtype)
    dispatch_attention_fn(x_BLHD, x_BLHD, x_BLHD, backend=backend)
