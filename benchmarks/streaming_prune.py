"""Cutting a checkpoint of Z-Image's true size from disk to disk, against copying it, in one run.

    python -m benchmarks.streaming_prune [--write docs/streaming_prune.md] [--work DIR] [--small]

The weights are random, the shapes are Z-Image's: 6.15 billion numbers in bfloat16, 12.3 GB. Each cut runs in a process
of its own, with a cold page cache, and each is set beside copying the same files, just as cold, right before it. Both
count until everything is on the disk. All files are removed at the end.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import parse_prune
from zimage_studio.records.plan import TransformerShape
from zimage_studio.records.progress import silent

NEEDED_BYTES = 40 * 10**9
SHARD_BYTES = 5 * 10**9
POOL_NUMBERS, SMALL_POOL = 64 * 2**20, 2**16
SEED = 0
CUTS: Mapping[str, Mapping[str, object]] = {
    "feed-forward 25 %, random": {"kinds": "ffn", "criterion": "random", "ratio": 0.25},
    "feed-forward 25 %, L1": {"kinds": "ffn", "criterion": "l1", "ratio": 0.25},
    "heads 25 %, L1": {"kinds": "heads", "criterion": "l1", "ratio": 0.25},
    "depth 25 %, L1": {"kinds": "depth", "criterion": "l1", "ratio": 0.25},
}
REAL = {"in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30,
        "cap_feat_dim": 2560, "axes_dims": [32, 48, 48], "axes_lens": [1024, 512, 512]}  # fmt: skip
SMALL = {**REAL, "dim": 256, "n_layers": 6, "n_heads": 2, "n_kv_heads": 2}
VAE = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}
PAGE = """# Cutting a 12.3 GB checkpoint from disk to disk

Made by `python -m benchmarks.streaming_prune --write docs/streaming_prune.md`: Z-Image's true shapes with random
weights in bfloat16, the page cache cold before each time, the cut in a process of its own. Both times count until
everything is on the disk. Copy ÷ cut is the speed: 1 is as fast as copying the whole checkpoint. The peak is that of
the whole process while cutting, libraries included, sampled at each piece; beside it the most of the process's life,
scoring included. Scoring is the reading of the parent that the criterion takes before there is a plan. The parent's
hash is known beforehand, as it is in Studio once the model was listed.

{system}, {cores} CPU cores; one run. Aims: a peak of at most 3 GB, at least half the speed.

| cut | parent, GB | child, GB | scoring, s | copy, s | cut, s | copy ÷ cut | copy ÷ both | peak, GB | most, GB |
|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Row:
    """One cut. Times in seconds, sizes of the transformer in bytes; `scoring_s` is what the criterion took.

    `peak_bytes` is the most while cutting, `most_bytes` over the life of the process, scoring included.
    """

    name: str
    parent_bytes: int
    child_bytes: int
    scoring_s: float
    copy_s: float
    cut_s: float
    peak_bytes: int
    most_bytes: int


# --- the checkpoint -------------------------------------------------------------------------------------------------


def make_folder(folder: Path, config: Mapping[str, object], pool: int = POOL_NUMBERS) -> None:
    """A model folder whose transformer has this config and random weights; the other components are empty shells.

    `pool` is how many random numbers are drawn; they are used again and again.
    """
    from zimage_studio.core.pruning.shape import tensor_shapes

    tiny = Path(__file__).parent.parent / "zimage_studio" / "tiny" / "model"
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(tiny / part, folder / part)
    shutil.copy(tiny / "model_index.json", folder)
    shells = {"text_encoder": ("model", {"hidden_size": 2560}), "vae": ("diffusion_pytorch_model", VAE)}
    for part, (stem, settings) in shells.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(settings))
        _write(folder / part / f"{stem}.safetensors", {"shell": (1,)}, iter([b"\0\0"]))
    (folder / "transformer").mkdir()
    transformer = {"_class_name": "ZImageTransformer2DModel", "all_patch_size": [2], "all_f_patch_size": [1]}
    (folder / "transformer" / "config.json").write_text(json.dumps({**transformer, **config}))
    write_weights(folder / "transformer", tensor_shapes(shape_of(config)), pool)


def shape_of(config: Mapping[str, object]) -> TransformerShape:
    """The shape that the stock class gives this config."""
    from zimage_studio.records.plan import BlockShape

    dim, heads = int(str(config["dim"])), int(str(config["n_heads"]))
    counts = {"noise_refiner": config["n_refiner_layers"], "context_refiner": config["n_refiner_layers"],
              "layers": config["n_layers"]}  # fmt: skip
    blocks = [
        BlockShape(stack, index, int(dim / 3 * 8), heads)  # type: ignore[arg-type]
        for stack, count in counts.items()
        for index in range(int(str(count)))
    ]
    return TransformerShape(dim=dim, head_dim=dim // heads, in_channels=16, caption_width=2560, blocks=tuple(blocks))


def write_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]], pool: int) -> None:
    """bfloat16 normals of spread 0.02 out of one pool, in shards as diffusers writes them."""
    drawn = np.random.default_rng(SEED).standard_normal(pool, np.float32) * np.float32(0.02)
    raw = (drawn.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if _bytes(shards[-1]) + _bytes({name: shape}) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    names = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard, _pieces(shard, raw))
        names |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": _bytes(shapes)}, "weight_map": names}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(2 * int(np.prod(shape)) for shape in shapes.values())


def _pieces(shapes: Mapping[str, tuple[int, ...]], raw: bytes) -> Iterator[memoryview]:
    """Random bytes for each tensor, from another place of the pool each."""
    view = memoryview(raw)
    for number, shape in enumerate(shapes.values()):
        left, start = _bytes({"": shape}), number * 7_654_321 * 2 % len(raw)
        while left:
            piece = view[start : start + left]
            yield piece
            left, start = left - len(piece), 0


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]], pieces: Iterator[bytes | memoryview]) -> None:
    entries, start = {}, 0
    for name, shape in shapes.items():
        size = _bytes({name: shape})
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


# --- measuring ------------------------------------------------------------------------------------------------------


def measured(work: Path, cuts: Sequence[str], *, small: bool) -> list[Row]:
    """Every cut beside copying, in one run."""
    parent = work / "parent"
    make_folder(parent, SMALL, SMALL_POOL) if small else make_folder(parent, REAL)
    print(f"the checkpoint is written: {_size(parent) / 1e9:.2f} GB", flush=True)
    rows = []
    _hash(parent, work)
    for name in cuts:
        (work / "wish.json").write_text(json.dumps({"model": "parent", **CUTS[name]}))
        forget(parent)
        copy_s = copying(parent / "transformer", work / "copy")
        forget(parent)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.streaming_prune", "--cut", str(work)],
            check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        rows.append(Row(name=name, copy_s=copy_s, **json.loads(done.stdout.splitlines()[-1])))
        print(rows[-1], flush=True)
        shutil.rmtree(work / "child")
    return rows


def _hash(parent: Path, work: Path) -> ModelArtifact:
    """The model with its hash, which is kept for the next time."""
    from zimage_studio.core.fingerprint import HashCache, fingerprint
    from zimage_studio.core.model_files import inspect_folder

    sha256 = fingerprint(inspect_folder(parent).files, cache=HashCache(work / "hashes.json"))
    return ModelArtifact(key="parent", kind="folder", path=str(parent), name="parent", sha256=sha256)


def copying(source: Path, target: Path) -> float:
    """Seconds to copy a folder's files and have them on the disk; the copy is removed."""
    begun = time.monotonic()
    target.mkdir()
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as copied:
            os.fsync(copied.fileno())
    taken = time.monotonic() - begun
    shutil.rmtree(target)
    return taken


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache, so that the next reading goes to the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cut_once(work: Path) -> None:
    """In a process of its own: score, plan and cut; how long the parts took and how much memory was held."""
    from zimage_studio.core.fingerprint import HashCache
    from zimage_studio.core.pruning.artifact import write_pruned
    from zimage_studio.core.pruning.criteria import score
    from zimage_studio.core.pruning.planning import make_plan

    parent, request = work / "parent", parse_prune(json.loads((work / "wish.json").read_text()))
    begun = time.monotonic()
    scores = score(parent, request.criterion, request.kinds, seed=SEED)
    scoring_s = time.monotonic() - begun
    plan = make_plan(request, _hash(parent, work), parent, scores, silent)
    forget(parent)
    made = write_pruned(parent, work / "child", plan, progress=silent, cache=HashCache(work / "hashes.json"))
    row = {
        "parent_bytes": plan.transformer_bytes_before, "child_bytes": plan.transformer_bytes_after,
        "scoring_s": scoring_s, "cut_s": made.seconds, "peak_bytes": made.peak_memory_bytes,
        "most_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip
    print(json.dumps(row))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def page(rows: Sequence[Row]) -> str:
    """The whole Markdown page."""
    lines = [PAGE.format(system=platform.system(), cores=os.cpu_count())]
    for row in rows:
        numbers = (
            f"{row.parent_bytes / 1e9:.2f}", f"{row.child_bytes / 1e9:.2f}", f"{row.scoring_s:.0f}",
            f"{row.copy_s:.1f}", f"{row.cut_s:.1f}", f"{row.copy_s / row.cut_s:.2f}",
            f"{row.copy_s / (row.scoring_s + row.cut_s):.2f}", f"{row.peak_bytes / 1e9:.2f}",
            f"{row.most_bytes / 1e9:.2f}",
        )  # fmt: skip
        lines.append(f"| {row.name} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--work", type=Path, help="where the files lie while it runs; 40 GB must be free")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    parser.add_argument("--only", action="append", choices=tuple(CUTS), help="some of the cuts")
    parser.add_argument("--cut", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    prepare_torch()
    if options.cut:
        cut_once(options.cut)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        free = shutil.disk_usage(folder).free
        if not options.small and free < NEEDED_BYTES:
            parser.error(f"{folder} has {free / 1e9:.0f} GB free; {NEEDED_BYTES / 1e9:.0f} GB are needed")
        text = page(measured(Path(folder), options.only or tuple(CUTS), small=options.small))
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
