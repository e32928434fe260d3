"""What to try next when the memory was not enough: the same profile with one more switch, in the planner's order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.memory import MemoryProfile

TILE_PX, SMALL_TILE_PX = 512, 256
CHUNKS, MORE_CHUNKS = 4, 16


@dataclass(frozen=True, slots=True)
class Rung:
    """One step towards less memory. `name` is recorded; the message `recovery.<name>` says it to people."""

    name: str
    changes: Mapping[str, object]


RUNGS = (
    Rung("tiled", {"vae_tile_px": TILE_PX, "feed_forward_chunks": CHUNKS}),
    Rung("text_out", {"evict_text_encoder": True}),
    Rung("streamed", {"group_offload": "block", "group_offload_stream": True}),
    Rung(
        "streamed_leaves", {"group_offload": "leaf", "vae_tile_px": SMALL_TILE_PX, "feed_forward_chunks": MORE_CHUNKS}
    ),
    Rung("from_disk", {"group_offload": "block", "group_offload_stream": False, "group_offload_disk": True}),
)
"""Tiling, eviction, offload, as the planner ranks them: first what loses time only where nothing else would do."""
NEEDS_ACCELERATOR = frozenset({"streamed", "streamed_leaves"})
GROUPED = ("group_offload", "group_offload_blocks", "group_offload_stream", "group_offload_disk")


def rungs_below(profile: MemoryProfile, *, accelerated: bool) -> Iterator[tuple[Rung, MemoryProfile]]:
    """The profiles to try after `profile`, each with the rung that leads there, needing less and less.

    A rung keeps every other choice of the person, changes nothing that is already so or goes further, and is left out
    where it would contradict another switch or, `accelerated` being False, has no effect.
    """
    for rung in RUNGS:
        if rung.name in NEEDS_ACCELERATOR and not accelerated:
            continue
        lower = _lowered(profile, rung)
        if lower is not None and not lower.same_switches(profile):
            profile = lower
            yield rung, lower


def _lowered(profile: MemoryProfile, rung: Rung) -> MemoryProfile | None:
    changes = {name: value for name, value in rung.changes.items() if not _goes_further(profile, name, value)}
    if "group_offload" in rung.changes:
        if _streams_as_far(profile, rung):
            changes = {name: value for name, value in changes.items() if name not in GROUPED}
        else:
            changes |= {"model_offload": False, "group_offload_blocks": 1}
    try:
        return replace(profile, name="", **changes)  # type: ignore[arg-type]
    except InvalidInputError:
        return None


def _goes_further(profile: MemoryProfile, name: str, value: object) -> bool:
    """Whether the profile already saves at least as much with switch `name`."""
    if name == "vae_tile_px" and isinstance(value, int):
        return 0 < profile.vae_tile_px <= value
    if name == "feed_forward_chunks" and isinstance(value, int):
        return profile.feed_forward_chunks >= value
    return False


_DEPTH = {"none": 0, "block": 1, "leaf": 2}


def _streams_as_far(profile: MemoryProfile, rung: Rung) -> bool:
    """From disk is deepest; then layer by layer; then block by block."""
    if profile.group_offload_disk:
        return True
    wanted = 3 if rung.changes.get("group_offload_disk") else _DEPTH[str(rung.changes["group_offload"])]
    return _DEPTH[profile.group_offload] >= wanted
