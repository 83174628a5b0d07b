"""From a training framework's model to an explainable ONNX file, checked against the framework's own gradients.

`export` is what all frameworks share, `frameworks` the table of them. `keras*` and `torch*` modules need the framework
they are named after; nothing in onnxcam imports them but an export.
"""
