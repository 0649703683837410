"""SAIL-VL, SAIL-VL2 and SAILViT: a vision tower, a projector of two layers and a Qwen language model."""
