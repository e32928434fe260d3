"""Torch lives here, in functions that are handed a model and keep nothing."""
