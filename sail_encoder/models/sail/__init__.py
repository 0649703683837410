"""SAIL, the single transformer for vision and language."""
