"""A text encoder that remembers: the same prompt is read once, and the same bits come back."""

import hashlib
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zimage_studio.core.memory.site import OFF, Answer, Site, applied

# Shapes: B prompts, L padded length, E width of the text encoder


@dataclass(frozen=True, slots=True)
class TextStates:
    """What the pipeline reads of a text encoder's output: `hidden_states[-2]`, (B, L, E)."""

    hidden_states: tuple[Tensor | None, ...]


class CachingTextEncoder(nn.Module):
    """Stands in the pipeline in place of `inner` and runs it only for prompts that it has not seen.

    The key is everything the encoder gets (ids, mask, padded length), so a hit is what a run would have given, bit
    for bit. It answers before any hook: with offloading, a hit moves no weight. What is kept lies in RAM, 2.6 MB for
    Z-Image's longest prompt in bfloat16; the least recently used goes first.
    """

    def __init__(self, inner: Any, capacity: int) -> None:
        super().__init__()
        self.inner = inner
        self.capacity = capacity
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = True) -> TextStates:
        """As the pipeline calls its text encoder. `output_hidden_states` is always on."""
        key = _key(input_ids, attention_mask)
        found = self._known.get(key)
        if found is None:
            found = super().__call__(input_ids, attention_mask).detach().to("cpu")
            self._known[key] = found
            if len(self._known) > self.capacity:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return TextStates((found.to(input_ids.device), None))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, E): the last but one hidden state of `inner`."""
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states: Tensor = out.hidden_states[-2]
        return states

    def forget(self) -> None:
        """Let every remembered prompt go."""
        self._known.clear()

    def __len__(self) -> int:
        """How many prompts are remembered."""
        return len(self._known)

    def __bool__(self) -> bool:
        """A model is true, however many prompts it remembers."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The encoder's."""
        dtype: torch.dtype = self.inner.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """The encoder's."""
        device: torch.device = self.inner.device
        return device

    @property
    def config(self) -> Any:
        """The encoder's."""
        return self.inner.config


def _key(ids_BL: Tensor, mask_BL: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(ids_BL.shape)).encode())
    digest.update(ids_BL.to("cpu", torch.int64).numpy().tobytes())
    digest.update(mask_BL.to("cpu", torch.bool).numpy().tobytes())
    return digest.hexdigest()


def bare(text_encoder: Any) -> Any:
    """The text encoder itself, remembered or not."""
    return text_encoder.inner if isinstance(text_encoder, CachingTextEncoder) else text_encoder


def put_cache(site: Site, undo: ExitStack) -> None:
    """Put the memory in front of the text encoder. Before model offload, which must hook what it moves."""
    pipeline = site.pipeline
    if site.profile.embedding_cache and not isinstance(pipeline.text_encoder, CachingTextEncoder):
        undo.callback(setattr, pipeline, "text_encoder", pipeline.text_encoder)
        pipeline.text_encoder = CachingTextEncoder(pipeline.text_encoder, site.profile.embedding_cache)


def look_cache(site: Site) -> Answer:
    """Read from the live text encoder."""
    live = site.pipeline.text_encoder
    return applied("memory.cache.is", value=live.capacity) if isinstance(live, CachingTextEncoder) else OFF
