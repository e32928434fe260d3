"""Runs a command that dies with its parent: python -m zimage_studio.web.tether PARENT_PID COMMAND...

Linux sends the signal that PR_SET_PDEATHSIG names when the parent ends, however it ends; the setting outlives exec.
Elsewhere the command merely runs, and the next start sweeps it by its pid file.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)  # it ended before we were tied to it
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
