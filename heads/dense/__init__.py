"""Heads that give every pixel a class: linear, UperNet, and nearest neighbours for an instant look."""
