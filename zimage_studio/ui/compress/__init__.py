"""The Compress tab."""
