"""Ratios and medians, measured in one run: `make bench`. Never part of the tests: machines differ and are noisy."""
