"""A hash grid of our own: compiled on the CPU and the GPU, with nerfstudio's parameters and numbers."""
