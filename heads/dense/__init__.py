"""Heads that give every pixel a class: linear, UperNet, and nearest neighbours for an instant look."""

from sail_encoder.images.decoding import IMAGENET_MEAN

IGNORE = 255
"""The label of pixels that count neither in training nor in evaluation."""

PADDING = tuple(round(255 * channel) for channel in IMAGENET_MEAN)
"""Color beyond the edge of an image: zero once it is normalised."""
