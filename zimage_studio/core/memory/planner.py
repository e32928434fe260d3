"""Choose the least lossy profile that fits into the memory that is free; say why, or what would fit."""

import bisect
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from zimage_studio.core.memory.estimate import MAX_TOKENS, Estimator
from zimage_studio.records.memory import GIB, PRESETS, Estimate, MemoryProfile, Plan
from zimage_studio.records.request import MIN_SIDE_PX, SIDE_STEP_PX

RESERVE_BYTES = 256 * 2**20
RESERVE_SHARE = 0.05
"""Kept free for what the estimate does not see: workspaces of cuBLAS and cuDNN, fragments of the allocator."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A profile with its rank.

    `loss`: 0 equal up to rounding, 1 seams of VAE tiles, 2 float16 or bfloat16 where float32 is usual, 3 weights of
    8 bits, 4 of 4 bits. `pace`: the slower the higher; 9 reads the weights from disk in every step.
    """

    profile: MemoryProfile
    loss: int
    pace: int


@dataclass(frozen=True, slots=True)
class Room:
    """What is free: on the device, and in RAM beside it (None: unknown, not looked at)."""

    free_bytes: int
    host_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """The picture that is to be made: size in px, whether under guidance, padded length of the text in tokens."""

    width: int
    height: int
    guidance: bool = False
    tokens: int = MAX_TOKENS


RANKS: Mapping[str, tuple[int, int]] = {
    "exact": (0, 0),
    "chunked": (0, 1),
    "text_out": (0, 2),
    "in_turn": (0, 4),
    "streamed": (0, 5),
    "from_disk": (0, 9),
    "tiled": (1, 1),
    "text_out_tiled": (1, 2),
    "streamed_tiled": (1, 5),
    "streamed_leaves": (1, 6),
    "from_disk_tiled": (1, 9),
    "bf16": (2, 0),
    "fp16": (2, 3),
    "fp16_streamed": (2, 5),
    "fp8_storage": (3, 3),
    "int8": (3, 3),
    "int4": (4, 3),
}
"""Presets by (loss, pace), see Candidate."""
ACCELERATED_ONLY = frozenset({"in_turn", "streamed", "streamed_tiled", "streamed_leaves", "fp16", "fp16_streamed"})


def candidates(estimator: Estimator, *, bf16: bool = True) -> tuple[Candidate, ...]:
    """What may be chosen on the estimator's device, least lossy first, then fastest.

    `bf16`: whether the device computes in bfloat16; where not, scaled float16 stands between float32 and 8 bits.
    Weights that are quantised already are neither quantised again nor written to disk.
    """
    cpu = estimator.device.type == "cpu"
    absent = set(ACCELERATED_ONLY) if cpu else {"bf16"}
    absent |= {"fp16", "fp16_streamed"} if bf16 else set()
    absent |= set() if importlib.util.find_spec("torchao") is not None else {"int8"}
    ranked = [Candidate(PRESETS[name], *rank) for name, rank in RANKS.items() if name not in absent]
    if estimator.shapes.stored_bytes is not None:
        ranked = [c for c in ranked if c.loss < 2 and not c.profile.group_offload_disk]
    return tuple(sorted(ranked, key=lambda c: (c.loss, c.pace)))


def plan(estimator: Estimator, scene: Scene, room: Room, *, bf16: bool = True) -> Plan:
    """The first candidate whose peak, with a reserve, is below what is free.

    More free memory never gives a lossier or slower choice. `room` is what this model may take: what is free now and
    what its predecessor would give back.
    """
    known = candidates(estimator, bf16=bf16)
    better: tuple[Candidate, Estimate] | None = None
    for candidate in known:
        estimate = _estimate(estimator, candidate, scene)
        if _fits(estimate, room):
            faster = _faster(estimator, scene, room, candidate, known)
            return _chosen(candidate, estimate, room, better, faster)
        better = better or (candidate, estimate)
    return _nothing(estimator, scene, room, known)


def _estimate(estimator: Estimator, candidate: Candidate, scene: Scene) -> Estimate:
    return estimator.estimate(
        candidate.profile, scene.width, scene.height, guidance=scene.guidance, tokens=scene.tokens
    )


def needed_bytes(estimate: Estimate) -> int:
    """The peak and the reserve."""
    return round(estimate.peak_bytes * (1 + RESERVE_SHARE)) + RESERVE_BYTES


def _fits(estimate: Estimate, room: Room) -> bool:
    if room.host_free_bytes is not None and estimate.host_bytes + RESERVE_BYTES > room.host_free_bytes:
        return False
    return needed_bytes(estimate) <= room.free_bytes


def _faster(
    estimator: Estimator, scene: Scene, room: Room, chosen: Candidate, known: tuple[Candidate, ...]
) -> MemoryProfile | None:
    """The quickest of the lossier ones that fit, if it is quicker than `chosen`."""
    lossier = sorted(
        (c for c in known if c.loss > chosen.loss and c.pace < chosen.pace), key=lambda c: (c.pace, c.loss)
    )
    return next((c.profile for c in lossier if _fits(_estimate(estimator, c, scene), room)), None)


def _chosen(
    candidate: Candidate,
    estimate: Estimate,
    room: Room,
    better: tuple[Candidate, Estimate] | None,
    faster: MemoryProfile | None,
) -> Plan:
    values = _values(candidate, estimate, room)
    reason = "plan.fits"
    if better is not None:
        first, its = better
        reason = "plan.next_best"
        values |= {"other": first.profile.name, "other_gib": _gib(needed_bytes(its))}
        if room.host_free_bytes is not None and needed_bytes(its) <= room.free_bytes:
            reason = "plan.next_best_ram"
            values |= {"other_gib": _gib(its.host_bytes), "ram_gib": _gib(room.host_free_bytes)}
    return Plan(
        profile=candidate.profile, fits=True, estimate=estimate, free_bytes=room.free_bytes,
        headroom_bytes=room.free_bytes - estimate.peak_bytes, reason=reason, values=values, faster=faster,
    )  # fmt: skip


def _nothing(estimator: Estimator, scene: Scene, room: Room, known: tuple[Candidate, ...]) -> Plan:
    """The candidate that needs least, and the largest picture for which it would fit."""
    estimates = [(candidate, _estimate(estimator, candidate, scene)) for candidate in known]
    possible = [pair for pair in estimates if _ram_suffices(pair[1], room)] or estimates
    candidate, estimate = min(possible, key=lambda pair: pair[1].peak_bytes)
    size = _largest_fitting(estimator, candidate, scene, room)
    values = _values(candidate, estimate, room)
    if size is not None:
        values |= {"width": size.width, "height": size.height}
    return Plan(
        profile=candidate.profile, fits=False, estimate=estimate, free_bytes=room.free_bytes,
        headroom_bytes=room.free_bytes - needed_bytes(estimate),
        reason="plan.nothing" if size is None else "plan.smaller_size", values=values,
        size=None if size is None else (size.width, size.height),
    )  # fmt: skip


def _ram_suffices(estimate: Estimate, room: Room) -> bool:
    return room.host_free_bytes is None or estimate.host_bytes + RESERVE_BYTES <= room.host_free_bytes


def _largest_fitting(estimator: Estimator, candidate: Candidate, scene: Scene, room: Room) -> Scene | None:
    """By halving, since a larger picture never needs less."""
    smallest_first = list(_smaller(scene))[::-1]
    count = bisect.bisect_left(smallest_first, True, key=lambda s: not _fits(_estimate(estimator, candidate, s), room))
    return smallest_first[count - 1] if count else None


def _smaller(scene: Scene) -> Iterator[Scene]:
    """Pictures of the same shape, an eighth smaller each time."""
    width, height = scene.width, scene.height
    while True:
        width, height = (side * 7 // 8 // SIDE_STEP_PX * SIDE_STEP_PX for side in (width, height))
        if min(width, height) < MIN_SIDE_PX:
            return
        yield replace(scene, width=width, height=height)


def _values(candidate: Candidate, estimate: Estimate, room: Room) -> dict[str, object]:
    return {
        "profile": candidate.profile.name,
        "need_gib": _gib(needed_bytes(estimate)),
        "peak_gib": _gib(estimate.peak_bytes),
        "phase": f"phase_{estimate.highest.phase}",
        "free_gib": _gib(room.free_bytes),
        "left_gib": _gib(max(0, room.free_bytes - estimate.peak_bytes)),
    }


def _gib(count: float) -> str:
    """Two decimals below 10, one above."""
    gib = count / GIB
    return f"{gib:.2f}" if gib < 10 else f"{gib:.1f}"
