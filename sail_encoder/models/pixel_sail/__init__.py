"""Pixel-SAIL: a SAIL that answers with masks, and that can be asked about regions."""
