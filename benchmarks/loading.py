"""Loading against plain `from_pretrained`, in one run: a random model of 1.8 GB on disk, warm and cold, and its copy.

    python -m benchmarks.loading [--repeats 5] [--write docs/loading.md] [--work DIR]

The model is stored as Z-Image-Turbo is: a sharded float32 transformer, a bfloat16 text encoder, a float32 VAE. Each
time counts until every page of every weight was touched: what is mapped from a file costs nothing before it is used.
"""

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import silent

if TYPE_CHECKING:
    import torch
    from diffusers import ZImagePipeline

PAGE_BYTES = 4096
SHA = "0" * 64
TRANSFORMER = {"dim": 1280, "n_layers": 8, "n_heads": 10, "n_kv_heads": 10, "cap_feat_dim": 1024}
TEXT = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
SMALL_TRANSFORMER = {**TRANSFORMER, "dim": 256, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 64}
SMALL_TEXT = {**TEXT, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}


def make_folder(folder: Path, *, small: bool = False) -> None:
    """A model of random weights, stored as Turbo is."""
    import torch

    from benchmarks.geometry import GEOMETRIES, Geometry, build

    transformer, text = (SMALL_TRANSFORMER, SMALL_TEXT) if small else (TRANSFORMER, TEXT)
    source = GEOMETRIES["z-image"]
    vae = source.vae | ({"block_out_channels": [32, 32, 32, 32]} if small else {})
    geometry = Geometry(name="middle", transformer=transformer, text_encoder=text, vae=vae)
    cpu, single = torch.device("cpu"), torch.float32
    names = ("text_encoder", "transformer", "vae")
    pipeline = build(
        geometry, dict.fromkeys(names, cpu), dict.fromkeys(names, single) | {"text_encoder": torch.bfloat16}
    )
    pipeline.save_pretrained(folder, max_shard_size="400MB")


def ways(folder: Path, copies: Path, dtype: "torch.dtype") -> Mapping[str, Callable[[], "ZImagePipeline"]]:
    """Every way to load `folder` in `dtype`, by name."""
    import torch
    from diffusers import ZImagePipeline

    from zimage_studio.core import compact
    from zimage_studio.core.loading import load_pipeline

    artifact = ModelArtifact(key="m", kind="folder", path=str(folder), name="m")
    dtypes = dict.fromkeys(("text_encoder", "transformer", "vae"), dtype)

    def plain() -> ZImagePipeline:
        return ZImagePipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)

    def ours(copy: Path | None = None) -> ZImagePipeline:
        return load_pipeline(artifact, device="cpu", dtypes=dtypes, compact=copy, progress=silent)

    found: dict[str, Callable[[], ZImagePipeline]] = {"plain": plain, "Studio": ours}
    if dtype == torch.bfloat16:
        copy = compact.write(folder, copies, SHA, progress=silent)
        found["Studio, compact"] = lambda: ours(copy.folder)
    return found


def seconds(load: Callable[[], "ZImagePipeline"]) -> float:
    """Until every page was touched."""
    started = time.perf_counter()
    pipeline = load()
    touch(pipeline)
    return time.perf_counter() - started


def touch(pipeline: "ZImagePipeline") -> None:
    """Read one number of every page."""
    for name in ("text_encoder", "transformer", "vae"):
        for tensor in getattr(pipeline, name).state_dict().values():
            step = max(1, PAGE_BYTES // tensor.element_size())
            tensor.reshape(-1)[::step].sum().item()


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache, so that the next reading goes to the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(work: Path, repeats: int, *, small: bool = False) -> list[tuple[str, str, str, list[float]]]:
    """(dtype, page cache, way, seconds), the ways in turns."""
    import torch

    folder, copies = work / "model", work / "compact"
    make_folder(folder, small=small)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        found = ways(folder, copies, dtype)
        for cache in ("warm", "cold"):
            times: dict[str, list[float]] = {name: [] for name in found}
            for number in range(repeats + 1):
                for name in [*list(found)[number % len(found) :], *list(found)[: number % len(found)]]:
                    gc.collect()  # what an earlier pipeline has mapped cannot be forgotten
                    if cache == "cold":
                        forget(work)
                    taken = seconds(found[name])
                    if number:  # the first round warms imports and the page cache
                        times[name].append(taken)
            rows += [(str(dtype).removeprefix("torch."), cache, name, taken) for name, taken in times.items()]
    return rows


def table(rows: Sequence[tuple[str, str, str, list[float]]]) -> str:
    """Markdown: medians, and the ratio to plain diffusers of the same line."""
    lines = ["| loaded as | page cache | way | s, median | s, fastest | ÷ plain |", "|---|---|---|---|---|---|"]
    plain = {row[:2]: statistics.median(row[3]) for row in rows if row[2] == "plain"}
    for dtype, cache, way, taken in rows:
        middle = statistics.median(taken)
        ratio = middle / plain[dtype, cache]
        lines.append(f"| {dtype} | {cache} | {way} | {middle:.2f} | {min(taken):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a model of a few MB, to try the way")
    parser.add_argument("--work", type=Path, help="where the model is made; a temporary folder by default")
    parser.add_argument("--write", type=Path, help="replace the table of this page")
    options: Any = parser.parse_args(arguments)
    prepare_torch()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        text = table(measured(Path(work), options.repeats, small=options.small))
    made = f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, no GPU"
    text = f"Made by `python -m benchmarks.loading` on: {made}.\n\n{text}"
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, rest = page.split("<!-- measured -->")
        after = rest.split("<!-- end -->")[1]
        options.write.write_text(f"{before}<!-- measured -->\n{text}\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
