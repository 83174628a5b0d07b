"""What each operator is: one table of traits, from which every module takes the sets it asks about."""

from __future__ import annotations

from enum import Flag, auto


class Trait(Flag):
    """What a module may want to know of an operator. *Data* is its first input."""

    NONE = 0
    ELEMENTWISE = auto()  # each output element depends on the inputs' elements at its place, after broadcasting
    # activations, scalings, residual sums, quantization: they end the layer that a convolution or a block begins. Which
    # layer is the default depends on them, so an operator added here changes exported files
    ENDS_LAYER = auto()
    CHEAP = auto()  # a runtime fuses it with its neighbours: computed again sooner than kept
    BLOCKED = auto()  # element-wise, and onnxruntime computes it in the blocked layout of convolutions
    JUMPS = auto()  # has a gradient almost everywhere, and a jump in between
    PASSES = auto()  # leaves the data as it is, but for its element type
    MOVES = auto()  # each output element is one of the data's elements, whatever they are
    RESHAPES = auto()  # regroups the axes; the elements stay in their order
    AFFINE = auto()  # affine in its data where the other inputs are constant
    JOINTLY_AFFINE = auto()  # affine in all of its inputs together
    PRODUCT = auto()  # affine in its data only where the other inputs are constant
    WEIGHTED = auto()  # applies learned weights
    CONVOLVES = auto()
    CHANNELS_FIRST = auto()  # its data or output is `[N, C, …]` by specification
    REGRIDS = auto()  # the output's rows and columns are another grid over the same picture
    NORMALIZES = auto()
    KEEPS_SHAPE = auto()  # each output element lies where the data's lay, and depends on others along some axes
    KEEPS_AXES = auto()  # rows stay rows and channels channels, though an axis may change its length
    REDUCES = auto()  # along the axes it is told
    PROBABILITY = auto()  # makes probabilities, or their logarithms, of logits
    RANDOM = auto()  # draws anew at every run, even from constants
    CONTROL = auto()  # runs subgraphs


TRAITS: dict[str, Trait] = {
    "Abs": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Acos": Trait.ELEMENTWISE,
    "Acosh": Trait.ELEMENTWISE,
    "Add": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.BLOCKED | Trait.AFFINE | Trait.JOINTLY_AFFINE,
    "AffineGrid": Trait.NONE,
    "And": Trait.ELEMENTWISE,
    "Asin": Trait.ELEMENTWISE,
    "Asinh": Trait.ELEMENTWISE,
    "Atan": Trait.ELEMENTWISE,
    "Atanh": Trait.ELEMENTWISE,
    "AveragePool": Trait.AFFINE | Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "BatchNormalization": Trait.AFFINE | Trait.CHANNELS_FIRST | Trait.NORMALIZES,
    "Bernoulli": Trait.RANDOM,
    "Cast": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.PASSES,
    "CastLike": Trait.NONE,
    "Ceil": Trait.ELEMENTWISE,
    "Celu": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "Clip": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.BLOCKED,
    "Col2Im": Trait.AFFINE | Trait.CHANNELS_FIRST,
    "Compress": Trait.MOVES | Trait.AFFINE,
    "Concat": Trait.MOVES | Trait.AFFINE | Trait.JOINTLY_AFFINE | Trait.KEEPS_AXES,
    "Conv": Trait.AFFINE | Trait.PRODUCT | Trait.WEIGHTED | Trait.CONVOLVES | Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "ConvInteger": Trait.WEIGHTED,
    "ConvTranspose": Trait.AFFINE
    | Trait.PRODUCT
    | Trait.WEIGHTED
    | Trait.CONVOLVES
    | Trait.CHANNELS_FIRST
    | Trait.REGRIDS,
    "Cos": Trait.ELEMENTWISE,
    "Cosh": Trait.ELEMENTWISE,
    "CumSum": Trait.AFFINE | Trait.KEEPS_SHAPE,
    "DepthToSpace": Trait.MOVES | Trait.AFFINE | Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "DequantizeLinear": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "Det": Trait.NONE,
    "Div": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.AFFINE | Trait.PRODUCT,
    "Dropout": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.PASSES | Trait.AFFINE,
    "Einsum": Trait.AFFINE | Trait.PRODUCT,
    "Elu": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Equal": Trait.ELEMENTWISE,
    "Erf": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Exp": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Expand": Trait.MOVES | Trait.AFFINE,
    "Flatten": Trait.MOVES | Trait.RESHAPES | Trait.AFFINE,
    "Floor": Trait.ELEMENTWISE,
    "Gather": Trait.MOVES | Trait.AFFINE,
    "GatherElements": Trait.MOVES | Trait.AFFINE,
    "GatherND": Trait.MOVES | Trait.AFFINE,
    "Gelu": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Gemm": Trait.AFFINE | Trait.PRODUCT | Trait.WEIGHTED,
    "GlobalAveragePool": Trait.AFFINE | Trait.CHANNELS_FIRST,
    "GlobalLpPool": Trait.CHANNELS_FIRST,
    "GlobalMaxPool": Trait.CHANNELS_FIRST,
    "Greater": Trait.ELEMENTWISE,
    "GreaterOrEqual": Trait.ELEMENTWISE,
    "GridSample": Trait.AFFINE | Trait.CHANNELS_FIRST,
    "GroupNormalization": Trait.CHANNELS_FIRST | Trait.NORMALIZES,
    "HardSigmoid": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "HardSwish": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.BLOCKED,
    "Hardmax": Trait.KEEPS_SHAPE,
    "Identity": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.PASSES | Trait.MOVES | Trait.AFFINE,
    "If": Trait.CONTROL,
    "InstanceNormalization": Trait.CHANNELS_FIRST | Trait.NORMALIZES,
    "IsInf": Trait.ELEMENTWISE,
    "IsNaN": Trait.ELEMENTWISE,
    "LRN": Trait.CHANNELS_FIRST | Trait.KEEPS_SHAPE,
    "LayerNormalization": Trait.NORMALIZES,
    "LeakyRelu": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Less": Trait.ELEMENTWISE,
    "LessOrEqual": Trait.ELEMENTWISE,
    "Log": Trait.ELEMENTWISE | Trait.CHEAP,
    "LogSoftmax": Trait.KEEPS_SHAPE | Trait.PROBABILITY,
    "Loop": Trait.CONTROL,
    "LpNormalization": Trait.KEEPS_SHAPE,
    "LpPool": Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "MatMul": Trait.AFFINE | Trait.PRODUCT | Trait.WEIGHTED,
    "MatMulInteger": Trait.WEIGHTED,
    "Max": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "MaxPool": Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "MaxUnpool": Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "Mean": Trait.ELEMENTWISE | Trait.AFFINE | Trait.JOINTLY_AFFINE,
    "MeanVarianceNormalization": Trait.NORMALIZES,
    "Min": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "Mish": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Mod": Trait.ELEMENTWISE,
    "Mul": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.BLOCKED | Trait.AFFINE | Trait.PRODUCT,
    "Multinomial": Trait.RANDOM,
    "Neg": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.AFFINE,
    "Not": Trait.ELEMENTWISE,
    "OneHot": Trait.NONE,
    "Or": Trait.ELEMENTWISE,
    "PRelu": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "Pad": Trait.AFFINE | Trait.REGRIDS | Trait.KEEPS_AXES,
    "Pow": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "QLinearConv": Trait.WEIGHTED,
    "QLinearMatMul": Trait.WEIGHTED,
    "QuantizeLinear": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "RMSNormalization": Trait.NORMALIZES,
    "RandomNormal": Trait.RANDOM,
    "RandomNormalLike": Trait.RANDOM,
    "RandomUniform": Trait.RANDOM,
    "RandomUniformLike": Trait.RANDOM,
    "Range": Trait.NONE,
    "Reciprocal": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "ReduceL1": Trait.REDUCES,
    "ReduceL2": Trait.REDUCES,
    "ReduceLogSum": Trait.REDUCES,
    "ReduceLogSumExp": Trait.REDUCES,
    "ReduceMax": Trait.REDUCES,
    "ReduceMean": Trait.AFFINE | Trait.REDUCES,
    "ReduceMin": Trait.REDUCES,
    "ReduceProd": Trait.REDUCES,
    "ReduceSum": Trait.AFFINE | Trait.REDUCES,
    "ReduceSumSquare": Trait.REDUCES,
    "Relu": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.BLOCKED,
    "Reshape": Trait.MOVES | Trait.RESHAPES | Trait.AFFINE,
    "Resize": Trait.AFFINE | Trait.REGRIDS | Trait.KEEPS_AXES,
    "ReverseSequence": Trait.MOVES | Trait.AFFINE,
    "RotaryEmbedding": Trait.NONE,
    "Round": Trait.ELEMENTWISE,
    "Scan": Trait.CONTROL,
    "ScatterElements": Trait.NONE,
    "ScatterND": Trait.NONE,
    "Selu": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "SequenceMap": Trait.CONTROL,
    "Shrink": Trait.ELEMENTWISE | Trait.JUMPS,
    "Sigmoid": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.BLOCKED | Trait.PROBABILITY,
    "Sign": Trait.ELEMENTWISE,
    "Sin": Trait.ELEMENTWISE,
    "Sinh": Trait.ELEMENTWISE,
    "Slice": Trait.MOVES | Trait.AFFINE | Trait.KEEPS_AXES,
    "Softmax": Trait.KEEPS_SHAPE | Trait.PROBABILITY,
    "Softplus": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Softsign": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "SpaceToDepth": Trait.MOVES | Trait.AFFINE | Trait.CHANNELS_FIRST | Trait.REGRIDS,
    "Split": Trait.MOVES | Trait.AFFINE | Trait.KEEPS_AXES,
    "Sqrt": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "Squeeze": Trait.MOVES | Trait.RESHAPES | Trait.AFFINE,
    "Sub": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP | Trait.AFFINE | Trait.JOINTLY_AFFINE,
    "Sum": Trait.ELEMENTWISE | Trait.AFFINE | Trait.JOINTLY_AFFINE,
    "Swish": Trait.ELEMENTWISE | Trait.ENDS_LAYER,
    "Tan": Trait.ELEMENTWISE,
    "Tanh": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.CHEAP,
    "TensorScatter": Trait.NONE,
    "ThresholdedRelu": Trait.ELEMENTWISE | Trait.ENDS_LAYER | Trait.JUMPS,
    "Tile": Trait.MOVES | Trait.AFFINE | Trait.KEEPS_AXES,
    "TopK": Trait.NONE,
    "Transpose": Trait.MOVES | Trait.AFFINE,
    "Trilu": Trait.AFFINE | Trait.KEEPS_SHAPE,
    "Unsqueeze": Trait.MOVES | Trait.RESHAPES | Trait.AFFINE,
    "Where": Trait.ELEMENTWISE | Trait.JUMPS,
    "Xor": Trait.ELEMENTWISE,
}


def having(traits: Trait) -> frozenset[str]:
    """The operators that have one of some traits."""
    return frozenset(name for name, its in TRAITS.items() if its & traits)
