"""float16 on a model whose overflow is made real: plain, clamped as other programs do, and scaled as Studio does.

python -m benchmarks.fp16 [--write docs/fp16.md]

The weights of the embedded model are multiplied by powers of two where RMSNorm divides them out again (its eps is
multiplied to match), so that the float32 model computes the same function, bit for bit, while the products inside
grow until float16 cannot hold them. What float16 then gives is compared with that one float32 answer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from zimage_studio.core.torch_environment import prepare_torch

EMBEDDED = Path(__file__).parent.parent / "zimage_studio" / "tiny" / "model"
MARKS = ("<!-- measured -->", "<!-- end -->")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    prepare_torch()
    from benchmarks.fp16_table import table  # after prepare_torch: it imports diffusers

    text = table(EMBEDDED)
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, rest = page.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        options.write.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
