"""Names of inputs and outputs of the parts that a model is taken apart into; kept free of onnx, as manifests are."""

SCORES, COTANGENT, GRADIENT, ACTIVATIONS, TARGET = (
    "onnxcam.scores",
    "onnxcam.cotangent",
    "onnxcam.gradient",
    "onnxcam.activations",
    "onnxcam.target",
)
# what the name of a map begins with, its method behind it
MAP = "onnxcam.map."
GRAM, POWER, MEAN = "onnxcam.gram", "onnxcam.power", "onnxcam.mean"
DIRECTION, CURVATURE = "onnxcam.direction", "onnxcam.curvature"
# layers by name: the picture itself, whose tail is the whole model; of a transformer, the output of its last block
INPUT, BLOCK = "", "onnxcam.block"
