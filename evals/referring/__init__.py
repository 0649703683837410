"""Referring expressions: data sets of them, training of a Pixel-SAIL, and scores."""
