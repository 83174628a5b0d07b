"""Operators that are refused by name: what they compute is a program that runs while the model does."""

from __future__ import annotations

from onnxcam.autodiff.registry import refuse

refuse("If", why="it is control flow whose condition is only known while the model runs")
refuse("Loop", "Scan", "SequenceMap", why="it is control flow, which repeats a subgraph as often as the data says")
refuse("RNN", "LSTM", "GRU", why="it is recurrent, and onnxcam does not differentiate through time")
