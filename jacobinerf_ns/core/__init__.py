"""The mathematics: pure functions on tensors, without nerfstudio."""
