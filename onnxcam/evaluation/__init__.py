"""The numbers that judge maps: `onnxcam.evaluation.judge.evaluate` computes them, `onnxcam evaluate` shows them."""
