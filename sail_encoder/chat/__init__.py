"""Conversations about images: `Chat` in Python, `sail chat` on the command line."""
