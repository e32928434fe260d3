"""The Refine tab: one change, variations, grids."""
