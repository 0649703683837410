"""Heads on features: probes and segmentation heads."""
