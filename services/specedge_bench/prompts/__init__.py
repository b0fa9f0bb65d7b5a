"""What the bench asks: the project's own prompts and loaders for public data sets."""
