"""From a training framework's model to an explainable ONNX file, checked against the framework's own gradients.

The modules here need the framework they are named after; nothing in onnxcam imports them unless it is asked to export.
"""
