"""Operators by what they do, where several modules ask."""

NORMALIZATIONS = {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
                  "RMSNormalization"}  # fmt: skip
ELEMENTWISE = {
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Gelu", "Mish", "Swish", "Tanh", "Erf", "Softplus", "Softsign", "Identity", "Dropout", "Cast",
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sqrt", "Exp", "Abs", "Reciprocal", "Min", "Max",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip
REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
              "ReduceProd", "ReduceLogSumExp"}  # fmt: skip
