"""What cutting the embedded model costs, and what training gives back: every cut by every criterion, in one table.

    python -m benchmarks.compression_study --work DIR --write docs/compression_study.md

Each line is a plan, a cut from disk to disk, a recovery and two measurements, by the code that the Compress tab runs.
Lines that are finished lie in DIR and are not made again; a line that was never run is missing in the table and says
so. `--only ffn75 --by l1` runs some of them.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.compression_table import page
from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.records.recover import RecoveryConfig


def main() -> None:
    """Command line of the study."""
    prepare_torch()
    from benchmarks.compression_lines import CRITERIA, CUTS, finished, run, time_again  # diffusers comes with it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps finished lines; give it again to go on")
    parser.add_argument("--write", type=Path, help="the page to write the table into")
    parser.add_argument("--only", nargs="*", default=[], choices=["control", *(cut.name for cut in CUTS)])
    parser.add_argument("--by", nargs="*", default=[], choices=CRITERIA)
    parser.add_argument("--count", type=int, default=100, help="questions asked of every model")
    parser.add_argument("--steps", type=int, default=120, help="training steps of every recovery")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time-again", action="store_true", help="time the finished lines anew, on a quieter machine")
    parser.add_argument("--table", action="store_true", help="only write the page from the lines that are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # gradients start at zero; denormal numbers are many times slower on a CPU
    options.work.mkdir(parents=True, exist_ok=True)
    config = RecoveryConfig(
        steps=options.steps, batch=32, optimiser="muon", lr=5e-4, muon_lr=4e-3, samples=0, ema=0.98,
        gradient_checkpointing=False, validate_every_s=3600,
    )  # fmt: skip
    if options.time_again:
        time_again(options.work, options.count)
    elif not options.table:
        run(options.work, options.only, options.by, options.count, config)
    if options.write:
        unpruned = json.loads((options.work / "unpruned.json").read_text("utf-8"))
        rows = finished(options.work)
        words = {cut.name: cut.words for cut in CUTS}
        options.write.write_text(page(unpruned, rows, words, CRITERIA, asdict(config)), "utf-8")


if __name__ == "__main__":
    main()
