"""Building engines of TensorRT and TensorRT-RTX."""
