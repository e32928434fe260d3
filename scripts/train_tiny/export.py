"""Write the trained parts as an ordinary diffusers folder, bfloat16, with judge and CLIP beside it."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ZImagePipeline

from scripts.train_tiny import checkpoint
from scripts.train_tiny.build import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
)

SIDE_PX = 128
STEPS = 8
GUIDANCE = 2.0
MAX_TOKENS = 64
MAX_TOTAL_BYTES = 16_000_000
MAX_FILE_BYTES = 15_000_000
MODEL_README = """# Tiny Z-Image

A Z-Image pipeline of 6.5 million parameters that draws flat icons at 128 px from English and Chinese captions:
one or two of twelve objects in ten colours on plain, striped or gradient backgrounds. It exists to show and to test
Z-Image Studio on any machine; it knows nothing else of the world. Made by `scripts/train_tiny` from pictures that
the scripts draw. Figures, vocabulary and limits: `docs/tiny_model.md`. Licence: Apache-2.0.

Load it with `diffusers.ZImagePipeline.from_pretrained`, call it with `width=128, height=128,
num_inference_steps=8, guidance_scale=2.0, max_sequence_length=64`.
"""


def assemble(out: Path) -> ZImagePipeline:
    """The pipeline from the averaged weights in `out`, float32, on the CPU."""
    tokenizer = build_tokenizer()
    vae, transformer = build_vae(), build_transformer()
    text_encoder = build_text_encoder(len(tokenizer), tokenizer.pad_token_id)
    checkpoint.load_modules(out / "vae_final.safetensors", {"vae": vae})
    checkpoint.load_modules(out / "flow.ema.safetensors", {"transformer": transformer, "text_encoder": text_encoder})
    return ZImagePipeline(
        scheduler=build_scheduler(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def defaults(sizes: Sequence[tuple[int, int]], *, guidance: float = GUIDANCE) -> dict[str, object]:
    """What the model likes best, for whoever opens the folder; the first of `sizes` is the native one."""
    width, height = sizes[0]
    return {
        "width": width,
        "height": height,
        "steps": STEPS,
        "guidance": guidance,
        "max_sequence_length": MAX_TOKENS,
        "sizes": [list(size) for size in sizes],
    }


def export(out: Path, target: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Replace `target/model`, `target/judge` and `target/clip` by what has been trained in `out` so far."""
    pipeline = assemble(out)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.to(torch.bfloat16)
    model = target / "model"
    shutil.rmtree(model, ignore_errors=True)
    pipeline.save_pretrained(model, safe_serialization=True)
    (model / "studio_defaults.json").write_text(json.dumps(defaults(sizes)) + "\n")
    (model / "README.md").write_text(MODEL_README)
    for name in ("judge", "clip"):
        if (out / name).exists():
            shutil.copytree(out / name, target / name, dirs_exist_ok=True)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    check_sizes(target)


def check_sizes(target: Path) -> int:
    """Bytes of the folder; ValueError when it or one of its files is too large to live in a repository."""
    files = {path: path.stat().st_size for path in target.rglob("*") if path.is_file()}
    total = sum(files.values())
    largest = max(files, key=lambda path: files[path])
    if total > MAX_TOTAL_BYTES or files[largest] > MAX_FILE_BYTES:
        raise ValueError(
            f"{target} has {total} bytes (at most {MAX_TOTAL_BYTES}), {largest.name} has {files[largest]}."
        )
    return total


def main() -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--sizes", default="128x128", help="comma-separated, the native one first")
    options = parser.parse_args()
    sizes = [(int(size.split("x")[0]), int(size.split("x")[1])) for size in options.sizes.split(",")]
    export(options.out, options.target, sizes)
    print(json.dumps({"bytes": check_sizes(options.target)}))


if __name__ == "__main__":
    main()
