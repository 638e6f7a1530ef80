"""TwoRoom: the real environment, its simulator and its shortest paths."""
