"""Arithmetic that stays finite: float16 scaled exactly, and the ladder to higher precision."""
