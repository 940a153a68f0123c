"""ONNX graphs, and their precision."""
