"""Z-Image Studio: generate, replay, fit and compress Z-Image models, with every claim measured."""

__version__ = "0.1.0"
