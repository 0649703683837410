"""Heads that give every pixel a class: linear, UperNet, and nearest neighbours for an instant look."""

IGNORE = 255
"""The label of pixels that count neither in training nor in evaluation."""
