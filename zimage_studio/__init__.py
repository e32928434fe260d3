"""Z-Image Studio: generate, replay, fit and compress Z-Image models, with every claim measured."""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """What diffusers asks of this package for a pruned model's `model_index.json`. Only then torch is imported."""
    if name in ("PrunedZImageTransformer2DModel", "ModelMixin"):
        return getattr(import_module("zimage_studio.core.pruned_transformer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
