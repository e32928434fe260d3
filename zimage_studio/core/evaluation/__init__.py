"""Measuring pictures: one metric a file."""
