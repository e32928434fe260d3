"""What must be true before transformers, diffusers or open_clip are first imported."""

import functools
import importlib.util
import logging
from pathlib import Path

import torch

TALKATIVE = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao")
"""Warn, when diffusers is imported, of kernels that this computer has no device for; the command line says results."""


@functools.cache  # the returned library must stay alive, and may be defined only once in a process
def prepare_torch() -> torch.library.Library | None:
    """Make `import torchvision` work beside a CPU build of torch, and importing diffusers silent.

    PyPI has only CUDA builds of torchvision. Beside a CPU build of torch their compiled operators cannot load, and
    `import torchvision` (which transformers and open_clip do) fails on the missing `nms`. Nothing here uses those
    operators, so it is enough that their names exist. Defines nothing where torchvision's own operators load, where
    torch has CUDA, or where torchvision is not installed.
    """
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
