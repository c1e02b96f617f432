"""Data sets: pictures as tensors in [-1, 1], with class labels, captions, boxes and label maps."""
