"""Checkpoint -> verified bundle: the ONNX graph, its precision, the parity gate."""
