"""What the worst files cost the reader of metadata: the time and the memory of each case, in a process of its own.

    python -m benchmarks.worst_metadata [--write docs/metadata.md]

The cases are those of tests/core/worst_files.py, each text pasted and under every key of a PNG. The exit status is 1
when a case crashed, took more than a second of processor time, or more than 256 MB on top of what the process had.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

KEYS = ("zimage_studio", "parameters", "invokeai_metadata", "prompt", "workflow")
MAX_SECONDS, MAX_MB = 1.0, 256
SHOWN_ROWS = 6
TABLE = re.compile(r"(<!-- worst -->\n).*(<!-- end of worst -->)", re.DOTALL)


def measured() -> list[dict[str, object]]:
    """One entry for each case."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.core.confined", folder, *KEYS]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def table(costs: Sequence[dict[str, object]]) -> str:
    """Markdown: the slowest and the largest cases that were read."""
    slowest = sorted(costs, key=lambda cost: -cost["seconds"])[:SHOWN_ROWS]
    largest = sorted(costs, key=lambda cost: -cost["resident_mb"])[:SHOWN_ROWS]
    shown = {cost["name"]: cost for cost in (*slowest, *largest)}.values()
    lines = ["| case | processor time | memory on top | end |", "|---|---|---|---|"]
    for cost in sorted(shown, key=lambda cost: -cost["seconds"]):
        end = str(cost["end"]).partition(":")[0]
        lines.append(f"| {cost['name']} | {cost['seconds']:.2f} s | {cost['resident_mb']:.0f} MB | {end} |")
    seconds = max(cost["seconds"] for cost in costs)
    mb = max(cost["resident_mb"] for cost in costs)
    lines.append(f"| **all {len(costs)}: at most** | **{seconds:.2f} s** | **{mb:.0f} MB** | no crash |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="put the table between the marks in this page")
    arguments = parser.parse_args()
    costs = measured()
    if crashed := [cost for cost in costs if "error" in cost]:
        sys.exit("\n".join(f"{cost['name']}: {cost['error']}" for cost in crashed))
    text = table(costs)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(TABLE.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", page), encoding="utf-8")
    if beyond := [c["name"] for c in costs if c["seconds"] > MAX_SECONDS or c["resident_mb"] > MAX_MB]:
        sys.exit(f"beyond {MAX_SECONDS:g} s or {MAX_MB} MB: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
