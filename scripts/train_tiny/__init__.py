"""How the embedded model was made, from drawn pictures to weights, reproducibly."""

from zimage_studio.core.torch_environment import prepare_torch

prepare_torch()  # before any module of this package imports diffusers
