"""Fit a pipeline into memory: switches that tell the truth, an estimate, a planner, a measurement."""
