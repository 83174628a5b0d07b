"""A classifier as a graph: its picture, readout and layers, the explainable file, and the parts it is cut into."""
