"""Extraction from a list of images to a store: reading ahead, encoding, writing, clean stops, devices."""
