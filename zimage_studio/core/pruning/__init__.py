"""What to cut, what that would do, and the cut itself."""
