"""A program of jobs for tests: counts slowly, writes each number down, and goes on where it was.

`counting_job.py ID --data DIR --parent PID --held FD` is the process of a job, as services.jobs starts it.
`counting_job.py app DATA HOW_FAR` is a small application: it queues two jobs, says their ids, and sleeps.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

from zimage_studio.errors import UserError
from zimage_studio.records.job import JobRecord
from zimage_studio.services.job_process import JobProgress, run_job
from zimage_studio.services.jobs import JobService

PROGRAM = (sys.executable, __file__)
EACH_S = 0.02


def count(job: JobRecord, folder: Path, progress: JobProgress) -> dict[str, object]:
    """The hash of all numbers up to `to`, whichever way they came about; with `refuse` or `break` it fails."""
    if job.request.get("refuse"):
        raise UserError("unknown_model", value="x", known="y")
    if job.request.get("break"):
        raise ZeroDivisionError("broken")
    numbers, to = folder / "numbers", int(str(job.request["to"]))
    done = len(numbers.read_text().split()) if numbers.exists() else 0
    for number in range(done, to):
        time.sleep(EACH_S)
        progress(number, to, "note.planning")
        with numbers.open("a") as file:
            file.write(f"{number}\n")
    return {"sha256": hashlib.sha256(numbers.read_bytes()).hexdigest(), "from": done}


def main() -> int:
    if sys.argv[1] == "app":
        service = JobService(Path(sys.argv[2]), program=PROGRAM)
        ids = [service.submit("evaluate", {"to": int(sys.argv[3])}).id for _ in range(2)]
        sys.stdout.write(" ".join(ids) + "\n")
        sys.stdout.flush()
        time.sleep(120)
    parser = argparse.ArgumentParser()
    parser.add_argument("id")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--held", type=int)
    given = parser.parse_args()
    return run_job(given.data, given.id, count, parent=given.parent, held=given.held)


if __name__ == "__main__":
    sys.exit(main())
