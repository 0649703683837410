"""Semantic segmentation on a frozen backbone: data, training, inference, scores."""
