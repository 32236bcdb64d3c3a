"""Heads on a frozen field: the teacher's features in 3D (DFF), and a semantic head."""
