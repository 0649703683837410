"""What sits on features: probes and segmentation heads."""
