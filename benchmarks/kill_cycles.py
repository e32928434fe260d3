"""Jobs killed at random moments, resumed, killed again, and compared with a run that nobody disturbed.

    python -m benchmarks.kill_cycles [--write docs/kill_cycles.md] [--kills 10] [--seed 0]

Everything goes through the command line on the embedded model. Each kind of job first runs unbroken. Then it is begun
again with the same request; after a random time, within what is left of the time that the unbroken run took, either
the command (the job's owner) or the job's own process gets SIGKILL. What is left behind is looked at, the job is
resumed, and so on until it was killed as often as asked; the last start runs to the end.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

COMMAND = [sys.executable, "-m", "zimage_studio"]
SEEN_S = 5.0
GONE_S = 20.0
PAGE = """# Killed and resumed

Made by `python -m benchmarks.kill_cycles --write docs/kill_cycles.md`: each kind of job on the embedded model, by the
command line, once unbroken and once with SIGKILL at random moments (seed {seed}), half of them to the command that
owns the job, half to the job's own process. After each kill the job has to be shown as interrupted at the next look
and no process may be left; then it is resumed. At the end what it made is compared with the unbroken run: weights byte
for byte, of a plan what it cuts, of a report card every number that no clock decides.

{system}, {cores} CPU cores; one run.

| job | unbroken, s | kills | shown as interrupted | processes left | half-written files | table whole | the same |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job: its command, and the files below DATA that must come out the same."""

    name: str
    command: tuple[str, ...]
    made: Callable[[Path], list[Path]]
    same: Callable[[Path], object] = Path.read_bytes


@dataclass(slots=True)
class Tally:
    """What was seen after the kills."""

    seconds: float = 0.0
    kills: int = 0
    interrupted: int = 0
    left: int = 0
    problems: list[str] = field(default_factory=list)


def _weights(name: str) -> Callable[[Path], list[Path]]:
    return lambda data: sorted((data / "models" / name / "transformer").glob("*.safetensors"))


def _metrics(path: Path) -> object:
    """Of a report card what does not depend on the clock."""
    card = json.loads(path.read_text("utf-8"))
    timed = ("seconds_per_image", "peak_bytes")
    return [metric for metric in card["metrics"] if metric["name"] not in timed]


KINDS = (
    Kind("plan (measured ablation)", ("plan", "--kind", "depth", "--criterion", "ablation", "--ratio", "0.25",
         "--name", "asked"), lambda data: [data / "plans" / "asked.json"],
         lambda path: json.loads(path.read_text("utf-8"))["cuts"]),
    Kind("prune", ("prune", "asked", "--name", "small"), _weights("small")),
    Kind("recover", ("recover", "small", "--steps", "40", "--batch", "8", "--name", "better"), _weights("better")),
    Kind("evaluate", ("evaluate", "better", "--count", "12"),
         lambda data: sorted((data / "models" / "better" / "report").glob("card.json")), _metrics),
)  # fmt: skip


def start(data: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """The command in a group of its own."""
    options = ["--data", str(data), "--offline"] if command[0] != "jobs" else ["--data", str(data)]
    return subprocess.Popen(
        [*COMMAND, *command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def jobs(data: Path) -> list[dict[str, object]]:
    """The table as the command line shows it, newest first."""
    done = subprocess.run(
        [*COMMAND, "jobs", "list", "--json", "--data", str(data)], capture_output=True, check=True, text=True
    )
    found: list[dict[str, object]] = json.loads(done.stdout)["jobs"]
    return found


def processes(job: str) -> list[int]:
    """The processes of the job whose id is in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if job.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found


def until(what: Callable[[], bool], seconds: float) -> bool:
    """Whether `what` came true in time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def run(kind: Kind, data: Path) -> float:
    """Unbroken. Returns the seconds."""
    begun = time.monotonic()
    process = start(data, kind.command)
    said = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{kind.name}: {said.decode()[-2000:]}")
    return time.monotonic() - begun


def killed(kind: Kind, data: Path, kills: int, dice: random.Random, whole_s: float) -> Tally:
    """The same with kills: at most `kills`, fewer when it was quicker than the last of them."""
    tally = Tally()
    before = {str(job["id"]) for job in jobs(data)}
    command: Sequence[str] = kind.command
    begun = time.monotonic()
    job = ""
    while True:
        process = start(data, command)
        if tally.kills == kills:
            break
        if not job:
            until(lambda: bool(set(_ids(data)) - before), GONE_S)
            (job,) = set(_ids(data)) - before
        try:
            process.wait(dice.uniform(0.1, 0.8) * whole_s)
        except subprocess.TimeoutExpired:
            _kill(process, job, dice)
        else:
            break  # it was quicker
        tally.kills += 1
        tally.left += not until(partial(_none_left, job), GONE_S)
        (state,) = [str(found["state"]) for found in jobs(data) if found["id"] == job]
        tally.interrupted += state == "interrupted"
        if state == "done":
            process = start(data, ("jobs", "show", job))
            break
        command = ("jobs", "resume", job)
    said = process.communicate()[1]
    if process.returncode:
        tally.problems.append(said.decode()[-400:])
    tally.seconds = time.monotonic() - begun
    return tally


def _none_left(job: str) -> bool:
    return not processes(job)


def _ids(data: Path) -> list[str]:
    """The ids in the table, read without starting Studio."""
    with sqlite3.connect(f"file:{data / 'jobs.sqlite'}?mode=ro", uri=True) as table:
        return [str(row[0]) for row in table.execute("SELECT id FROM jobs")]


def _kill(process: subprocess.Popen[bytes], job: str, dice: random.Random) -> None:
    """The owner or the job's process; where the job has none yet, the owner."""
    own = [pid for pid in processes(job) if pid != process.pid]
    victim = process.pid if not own or dice.random() < 0.5 else max(own)
    os.kill(victim, signal.SIGKILL)
    process.wait()


def row(kind: Kind, tally: Tally, whole_s: float, data: Path, same: bool) -> str:
    """One line of the table."""
    stale = [path for path in data.rglob(".*") if path.name.endswith((".tmp", ".partial"))]
    with sqlite3.connect(data / "jobs.sqlite") as table:
        whole = table.execute("PRAGMA integrity_check").fetchone()[0]
    return (
        f"| {kind.name} | {whole_s:.0f} | {tally.kills} | {tally.interrupted} of {tally.kills} | {tally.left} "
        f"| {len(stale)} | {'yes' if whole == 'ok' else whole} | {'yes' if same else 'NO'} |"
    )


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="kills of each kind of job")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    lines, problems = [], []
    with tempfile.TemporaryDirectory() as folder:
        calm, wild = Path(folder) / "calm", Path(folder) / "wild"
        jobs(calm), jobs(wild)
        for kind in KINDS:
            whole_s = run(kind, calm)
            tally = killed(kind, wild, options.kills, dice, whole_s)
            there = [
                {path.name: hashlib.sha256(repr(kind.same(path)).encode()).hexdigest() for path in kind.made(data)}
                for data in (calm, wild)
            ]
            lines.append(row(kind, tally, whole_s, wild, bool(there[0]) and there[0] == there[1]))
            problems += tally.problems
            print(lines[-1], *tally.problems, sep="\n", flush=True)
    page = PAGE.format(seed=options.seed, system=platform.platform(), cores=os.cpu_count())
    text = "\n".join([page, *lines, "", *(f"- {problem}" for problem in problems)]).rstrip() + "\n"
    if options.write:
        options.write.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
