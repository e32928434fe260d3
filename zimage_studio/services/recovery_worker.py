"""One of several processes of a recovery: `accelerate launch … -m zimage_studio.services.recovery_worker REQUEST`."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zimage_studio.errors import Cancelled, UserError
from zimage_studio.services.recovery_processes import Reporter

if TYPE_CHECKING:
    from zimage_studio.core.recovery.launch import LaunchRequest
    from zimage_studio.services.compression_work import PlanCutter

log = logging.getLogger(__name__)

FAILED, REFUSED = 1, 2


def main(arguments: list[str]) -> int:
    """Do the part of this process. A stop is no failure here: the launcher would kill who still writes."""
    reporter = Reporter(first=os.environ.get("RANK", "0") == "0")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        _recover(Path(arguments[0]), reporter)
    except Cancelled:
        reporter.stopped()
    except UserError as error:
        reporter.refused(error)
        return REFUSED
    except Exception as error:
        log.exception("failed")
        reporter.failed(error)
        return FAILED
    return 0


def _recover(path: Path, reporter: Reporter) -> None:
    from zimage_studio.core.recovery.launch import LaunchRequest, read_object

    told = read_object(path)
    asked = LaunchRequest.from_dict(told)
    cutter = _cutter(asked, Path(str(told["data"])), str(told["job"]), reporter) if asked.config.cuts else None
    done = asked.run(reporter.progress, reporter.line, cutter)
    reporter.done(steps=done.steps, loss_first=done.loss_first, loss_last=done.loss_last, seconds=done.seconds)


def _cutter(asked: "LaunchRequest", data: Path, job_id: str, reporter: Reporter) -> "PlanCutter":
    from zimage_studio.services.compression_work import PlanCutter, work_of

    work = work_of(data, job_id)
    return PlanCutter(work, work.models.get(str(asked.student), allow_paths=True), reporter.progress)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
