"""Operators refused by name: programs that run while the model does, and what no classifier was seen to need."""

from __future__ import annotations

from onnxcam.autodiff.registry import refuse

refuse("If", why="it is control flow whose condition is only known while the model runs")
refuse("Loop", "Scan", "SequenceMap", why="it is control flow, which repeats a subgraph as often as the data says")
refuse(
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceErase",
    "SequenceInsert",
    "SplitToSequence",
    why="onnxcam follows tensors, not sequences or optional values",
)
refuse("DFT", "STFT", "MelWeightMatrix", why="spectra are not covered")
refuse("MaxRoiPool", "RoiAlign", why="it looks at regions that a detector proposes, and is not covered")
refuse("DeformConv", why="convolution at places that the network chooses is not covered")
refuse("CumProd", why="running products are not covered")
refuse("Unique", why="which elements it leaves out depends on all of them")
refuse("BitCast", why="it takes the bits of a number for another number")
refuse("RNN", "LSTM", "GRU", why="it is recurrent, and onnxcam does not differentiate through time")
