"""`python -m zimage_studio`: the command line."""

import sys

from zimage_studio.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
