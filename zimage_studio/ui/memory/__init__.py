"""The Memory tab and the gauge on every page."""
