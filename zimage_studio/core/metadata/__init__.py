"""What images say about themselves: written and read without decoding a pixel."""
