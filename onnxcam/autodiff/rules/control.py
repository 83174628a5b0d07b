"""Operators refused by name: control flow, and what no classifier is known to need."""

from __future__ import annotations

from onnxcam.autodiff.registry import refuse

refuse("If", why="it is control flow whose condition is known only at run time")
refuse(
    "Loop",
    "Scan",
    "SequenceMap",
    why="it is control flow, which repeats a subgraph a number of times that depends on the data",
)
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
refuse("DeformConv", why="convolution at sampled offsets is not covered")
refuse("LinearAttention", why="it is recurrent, and onnxcam does not differentiate through time")
refuse("CumProd", why="running products are not covered")
refuse("Unique", why="which elements it drops depends on all of them")
refuse("BitCast", why="it reinterprets the bits of a number")
refuse("RNN", "LSTM", "GRU", why="it is recurrent, and onnxcam does not differentiate through time")
