"""The command line: the same services as the page, for people and for scripts.

Exit status: 0 done; 2 the input was refused (`error: …` on stderr); 1 anything else; 130 stopped. With --json,
stdout holds exactly one JSON object; progress and logs go to stderr.
"""

from zimage_studio.cli.app import main

__all__ = ["main"]
