"""Pictures in, tensors in [-1, 1] out, with their labels, captions, boxes, maps."""
