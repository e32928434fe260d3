"""The estimate against the truth: predicted and measured process memory of the embedded model, phase by phase.

    python -m benchmarks.memory_estimate [--write docs/memory_estimate.md] [--sizes 128 512 1024]

Each row is a process of its own, so that no earlier picture has left memory behind. The same table ends with what is
foretold for Z-Image's true geometry, from shapes alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MIB, GB = 2**20, 1e9
SIZES = (128, 256, 512, 768, 1024)
PROFILES = ("exact", "tiled", "from_disk_tiled", "int4")
GUIDANCE, TOKENS, STEPS = 2.0, 64, 2
RETURNED = "MALLOC_MMAP_THRESHOLD_"
"""With this set to a small number, glibc gives every freed tensor back to the system at once."""
TEXT_4B = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
FLUX_VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "sample_size": 1024, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def child(profile_name: str, side: int) -> dict[str, Any]:
    """One picture in this process: what was foretold, what was measured, in bytes."""
    from zimage_studio.core.torch_environment import prepare_torch

    prepare_torch()
    import torch

    from zimage_studio.core.loading import load_pipeline
    from zimage_studio.core.memory.apply import apply
    from zimage_studio.core.memory.estimate import Estimator
    from zimage_studio.core.memory.measure import RamProbe, probe_phases
    from zimage_studio.core.memory.shapes import Shapes
    from zimage_studio.core.preview import LatentToRgb
    from zimage_studio.core.sampling import sample
    from zimage_studio.records.artifact import ModelArtifact
    from zimage_studio.records.memory import PRESETS
    from zimage_studio.records.progress import silent
    from zimage_studio.records.request import GenerationRequest

    torch.set_num_threads(1)
    folder = Path(__file__).parent.parent / "zimage_studio" / "tiny" / "model"
    configs = {name: json.loads((folder / name / "config.json").read_text()) for name in ("transformer", "vae")}
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    single = dict.fromkeys(("text_encoder", "transformer", "vae"), torch.float32)
    profile = PRESETS[profile_name]
    shapes = Shapes.of_configs(configs["transformer"], text, configs["vae"], single)
    estimator = Estimator(shapes, torch.device("cpu"), keeps_heap=RETURNED not in os.environ)
    foretold = estimator.estimate(profile, side, side, guidance=True, tokens=TOKENS)
    artifact = ModelArtifact(key="tiny", kind="folder", path=str(folder), name="tiny")
    request = GenerationRequest(
        prompt="a red circle on a blue background", seed=1, width=side, height=side, steps=STEPS, guidance=GUIDANCE
    )
    with TemporaryDirectory() as scratch:
        pipeline = load_pipeline(artifact, device="cpu", progress=silent)
        pipeline.set_progress_bar_config(disable=True)
        applied = apply(pipeline, profile, scratch=Path(scratch))
        options: Any = {
            "scheduler_config": dict(pipeline.scheduler.config), "to_rgb": LatentToRgb.fit(pipeline.vae),
            "progress": silent,
        }  # fmt: skip
        sample(pipeline, request, **options)
        applied.forget_prompts()
        probe = RamProbe(pipeline)
        with probe_phases(pipeline, probe):
            sample(pipeline, request, **options)
        applied.undo()
    return {
        "idle": probe.baseline_bytes - probe.weights_bytes,
        "foretold": {phase.phase: phase.peak_bytes for phase in foretold.phases},
        "model": probe.peaks,
        "process": {phase: peak - probe.weights_bytes + probe.baseline_bytes for phase, peak in probe.peaks.items()},
    }


def run(profile: str, side: int, *, returned: bool) -> dict[str, Any]:
    """`child` in a fresh process; `returned`: in which freed tensors go back at once."""
    command = [sys.executable, "-m", "benchmarks.memory_estimate", "--child", profile, str(side)]
    changes = {"OMP_NUM_THREADS": "1"} | ({RETURNED: "65536"} if returned else {})
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **changes})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured_table(profiles: Sequence[str], sizes: Sequence[int], *, returned: bool) -> str:
    """Markdown: process memory foretold and measured, and the model's own part of it."""
    lines = [
        "| profile | picture | phase | process: foretold | measured | off by | model: foretold | measured | off by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    process_errors, model_errors = [], []
    for profile in profiles:
        for side in sizes:
            found = run(profile, side, returned=returned)
            for phase, foretold in found["foretold"].items():
                total, real, own = found["idle"] + foretold, found["process"][phase], found["model"][phase]
                process_errors.append(total / real - 1)
                model_errors.append(foretold / own - 1)
                lines.append(
                    f"| {profile} | {side}² | {phase} | {total / MIB:.0f} MiB | {real / MIB:.0f} MiB "
                    f"| {100 * process_errors[-1]:+.1f} % | {foretold / MIB:.1f} MiB | {own / MIB:.1f} MiB "
                    f"| {100 * model_errors[-1]:+.0f} % |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    said = f"Process: {_within(process_errors)} Model alone: {_within(model_errors)}"
    return "\n".join([*lines, "", said])


def _within(errors: Sequence[float]) -> str:
    good = sum(abs(error) <= 0.1 for error in errors)
    return f"{good} of {len(errors)} within 10 %, the largest error is {100 * max(map(abs, errors)):.1f} %."


def geometry_table() -> str:
    """Markdown: what is foretold for Z-Image itself on a CUDA device in bfloat16."""
    from zimage_studio.core.torch_environment import prepare_torch

    prepare_torch()
    import torch

    from zimage_studio.core.memory.estimate import Estimator
    from zimage_studio.core.memory.shapes import Shapes
    from zimage_studio.records.memory import PRESETS

    half = dict.fromkeys(("text_encoder", "transformer", "vae"), torch.bfloat16)
    estimator = Estimator(Shapes.of_configs({}, TEXT_4B, FLUX_VAE, half), torch.device("cuda"))
    sides = (512, 1024, 1536, 2048)
    lines = [
        "| profile | " + " | ".join(f"{side}² text / denoise / decode" for side in sides) + " | RAM beside |",
        "|---" * (len(sides) + 2) + "|",
    ]
    for name, profile in PRESETS.items():
        if name == "bf16":
            continue
        estimates = [estimator.estimate(profile, side, side) for side in sides]
        cells = [" / ".join(f"{phase.peak_bytes / GB:.2f}" for phase in e.phases) for e in estimates]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {estimates[0].host_bytes / GB:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES))
    parser.add_argument("--child", nargs=2, metavar=("PROFILE", "SIDE"))
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child[0], int(arguments.child[1]))))
        return
    machine = f"{platform.machine()}, Python {platform.python_version()}, one thread, no GPU"
    text = f"""# Memory: foretold and measured

Made by `python -m benchmarks.memory_estimate` on: {machine}.

## The embedded model, measured

Resident memory of a process of its own for each picture, after one that is not counted. Foretold is what the idle
process holds besides the weights, plus the estimate. Guidance {GUIDANCE:g}, so the transformer draws two at once. The
model's own part is small beside the libraries here; it is the part that grows.

{measured_table(arguments.profiles, arguments.sizes, returned=False)}

The model's own part is off by more because glibc keeps freed tensors of up to 32 MiB in its heap, in pieces that the
next ones may or may not fit into: the same picture measures differently from run to run. With {RETURNED}=65536
in the environment it gives them back (and takes a quarter longer or more), and what is left is the estimate itself:

{measured_table(arguments.profiles, arguments.sizes, returned=True)}

## Z-Image's true geometry, foretold

From shapes alone: GB (10⁹ bytes) on a CUDA device in bfloat16, 512 text tokens, without guidance. Not measured: no GPU
was at hand. Workspaces of libraries and the CUDA context come on top.

{geometry_table()}
"""
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
