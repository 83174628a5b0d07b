"""Loading, normalising, building and cutting ONNX graphs."""
