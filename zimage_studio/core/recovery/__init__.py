"""Training a smaller model until it draws like its parent again."""
