"""How much memory one image will need, phase by phase, before anything is loaded or run.

Weights are counted from the shapes; what is computed is traced on meta tensors through the same forwards, hooks and
processors that draw the image. Not seen: workspaces of cuBLAS and cuDNN, fragments of the allocator, the CUDA
context. The planner's reserve is for those.
"""

from collections.abc import Iterable
from contextlib import ExitStack

import torch

from zimage_studio.core.memory.feed_forward import chunk_feed_forward
from zimage_studio.core.memory.shapes import Shapes, block_stream_bytes, component_bytes, leaf_stream_bytes
from zimage_studio.core.memory.switches_attention import set_processors
from zimage_studio.core.memory.switches_precision import heavy_linears
from zimage_studio.core.memory.switches_vae import factor
from zimage_studio.core.memory.trace import Traced, trace
from zimage_studio.records.memory import PHASES, Estimate, MemoryProfile, Phase, PhasePeak

MAX_TOKENS = 512
COMPONENT_OF: dict[Phase, str] = {"text": "text_encoder", "denoise": "transformer", "decode": "vae"}
CPU = torch.device("cpu")


class Estimator:
    """Foretells peaks for one model on one kind of device. Traces are remembered; one size takes about a second.

    `device` need not exist here: only its type counts. `disk` says whether weights can be kept in a folder,
    `keeps_heap` whether the C library keeps memory that was freed (on a CPU; glibc does unless it is told not to).
    """

    def __init__(self, shapes: Shapes, device: torch.device, *, disk: bool = True, keeps_heap: bool = True) -> None:
        self.shapes = shapes
        self.device = device
        self._disk = disk
        self._keeps_heap = keeps_heap
        self._traces: dict[tuple[object, ...], Traced] = {}
        self._estimates: dict[tuple[object, ...], Estimate] = {}

    def estimate(
        self, profile: MemoryProfile, width: int, height: int, *, guidance: bool = False, tokens: int = MAX_TOKENS
    ) -> Estimate:
        """The peaks of one image of `width`×`height` px. `tokens` is the padded length of the text.

        Under guidance the transformer draws two at once.
        """
        key = (profile, width, height, guidance, tokens)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(profile, width, height, tokens, 2 if guidance else 1)
        return self._estimates[key]

    def _estimate(self, profile: MemoryProfile, width: int, height: int, tokens: int, batch: int) -> Estimate:
        traces = (
            self._text(profile, tokens),
            self._denoise(profile, width, height, tokens, batch),
            self._decode(profile, width, height),
        )
        expanded = {"denoise": self._expanded(profile)}
        return Estimate(
            tuple(
                self._phase(phase, profile, computed + expanded.get(phase, 0))
                for phase, computed in zip(PHASES, self._held(traces), strict=True)
            )
        )

    def _held(self, traces: Iterable[Traced]) -> list[int]:
        """What is computed in each phase. On a CPU the heap of one phase is still there in the next."""
        if self.device.type != "cpu" or not self._keeps_heap:
            return [traced.alive for traced in traces]
        held, heap = [], 0
        for traced in traces:
            held.append(max(heap + traced.large, traced.resident))
            heap = max(heap, traced.heap)
        return held

    def _phase(self, phase: Phase, profile: MemoryProfile, computed: int) -> PhasePeak:
        weights = sum(self._on_device(component, phase, profile) for component in COMPONENT_OF.values())
        host = 0
        if self.device.type != "cpu":
            host = sum(self._off_device(component, phase, profile) for component in COMPONENT_OF.values())
        return PhasePeak(phase, weights + computed, weights, host)

    # --- weights ------------------------------------------------------------------------------------------------

    def _on_device(self, component: str, phase: Phase, profile: MemoryProfile) -> int:
        """Bytes of `component`'s weights on the device during `phase`."""
        at_work = COMPONENT_OF[phase] == component
        whole = component_bytes(self.shapes, component, profile)
        accelerated = self.device.type != "cpu"
        if accelerated and profile.model_offload:
            return whole if at_work else 0
        if component == "text_encoder" and profile.evict_text_encoder:
            if accelerated:
                return leaf_stream_bytes(self.shapes, component, profile, ahead=self._ahead) if at_work else 0
            if self._disk:
                return block_stream_bytes(self.shapes, component, profile, blocks=1, ahead=False) if at_work else 0
        if component == "transformer" and self._streams(profile):
            return self._streamed(profile) if at_work else 0
        return whole

    def _streams(self, profile: MemoryProfile) -> bool:
        if profile.group_offload == "none":
            return False
        return self._disk if profile.group_offload_disk else self.device.type != "cpu"

    def _streamed(self, profile: MemoryProfile) -> int:
        ahead = profile.group_offload_stream and self._ahead
        if profile.group_offload == "leaf":
            return leaf_stream_bytes(self.shapes, "transformer", profile, ahead=ahead)
        blocks = profile.group_offload_blocks
        return block_stream_bytes(self.shapes, "transformer", profile, blocks=blocks, ahead=ahead)

    @property
    def _ahead(self) -> bool:
        """Whether the next weights are fetched while the present ones compute."""
        return bool(self.device.type == "cuda")

    def _off_device(self, component: str, phase: Phase, profile: MemoryProfile) -> int:
        """Bytes of `component`'s weights that are in RAM beside an accelerator."""
        whole = component_bytes(self.shapes, component, profile)
        if profile.model_offload:
            return 0 if COMPONENT_OF[phase] == component else whole
        if component == "transformer" and self._streams(profile):
            return 0 if profile.group_offload_disk else whole
        return whole if component == "text_encoder" and profile.evict_text_encoder else 0

    # --- what is computed ---------------------------------------------------------------------------------------

    def _text(self, profile: MemoryProfile, tokens: int) -> Traced:
        encoder = self.shapes.recast("text_encoder", profile)
        key = ("text", encoder.dtype, tokens)
        if key not in self._traces:
            ids_BL = torch.zeros(1, tokens, dtype=torch.long, device="meta")
            self._traces[key] = trace(lambda: encoder(input_ids=ids_BL, output_hidden_states=True), _weights(encoder))
        return self._traces[key]

    def _denoise(self, profile: MemoryProfile, width: int, height: int, tokens: int, batch: int) -> Traced:
        transformer = self.shapes.recast("transformer", profile)
        quadratic = profile.attention_backend == "native_math"
        chunk = profile.attention_query_chunk if quadratic else 0
        pieces = profile.feed_forward_chunks
        key = ("denoise", transformer.dtype, width, height, tokens, batch, quadratic, chunk, pieces)
        if key not in self._traces:
            with ExitStack() as undo:
                if pieces > 1:
                    chunk_feed_forward(transformer, pieces, undo)
                if chunk:
                    set_processors(transformer, "native_math", chunk, undo)
                self._traces[key] = self._trace_transformer((width, height), tokens, batch, quadratic)
        return self._traces[key]

    def _expanded(self, profile: MemoryProfile) -> int:
        """Quantised layers write out one whole weight, and its levels beside it, whenever they are used."""
        if profile.quantization == "none" and self.shapes.stored_bytes is None:
            return 0
        largest = max(linear.weight.numel() for _, _, linear in heavy_linears(self.shapes.transformer))
        return int(largest * (1 + self.shapes.dtype("transformer", profile).itemsize))

    def _trace_transformer(self, size: tuple[int, int], tokens: int, batch: int, quadratic: bool) -> Traced:
        transformer, cell = self.shapes.transformer, factor(self.shapes.vae)
        width, height = size[0] // cell, size[1] // cell
        channels, caption = transformer.config.in_channels, transformer.config.cap_feat_dim
        dtype = transformer.dtype

        def run() -> object:
            latents_BCHW = torch.empty(batch, channels, height, width, device="meta")
            noisy = list(latents_BCHW.to(dtype).unsqueeze(2).unbind(0))
            captions = [torch.empty(tokens, caption, dtype=dtype, device="meta") for _ in range(batch)]
            velocity = transformer(noisy, torch.zeros(batch, device="meta"), captions, return_dict=False)[0]
            return torch.stack([one.float() for one in velocity])

        return trace(run, _weights(transformer), quadratic=quadratic)

    def _decode(self, profile: MemoryProfile, width: int, height: int) -> Traced:
        """Whole, or one tile and what the tiles leave behind: all decoded ones, then the rows, then the picture."""
        vae = self.shapes.recast("vae", profile)
        tile = profile.vae_tile_px
        if not tile or max(width, height) <= tile:
            return self._trace_decode(width, height)
        picture = 3 * width * height * int(vae.dtype.itemsize)
        overlapping = round(picture / (1 - float(vae.tile_overlap_factor)) ** 2)
        one_tile = self._trace_decode(min(tile, width), min(tile, height))
        one, joined = overlapping, overlapping + 2 * picture
        return Traced(
            max(one_tile.alive + one, joined),
            one_tile.large,
            one_tile.heap + one,
            max(one_tile.resident + one, joined),
        )

    def _trace_decode(self, width: int, height: int) -> Traced:
        vae = self.shapes.vae
        key = ("decode", vae.dtype, width, height)
        if key not in self._traces:
            cell = factor(vae)
            z_BCHW = torch.empty(
                1, vae.config.latent_channels, height // cell, width // cell, dtype=vae.dtype, device="meta"
            )
            self._traces[key] = trace(
                lambda: vae.decode(z_BCHW, return_dict=False)[0],
                _weights(vae),
                conv_copies=self.device.type == "cpu",
            )
        return self._traces[key]


def _weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
