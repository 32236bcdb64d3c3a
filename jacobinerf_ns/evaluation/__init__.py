"""Simulated annotators, ours and rivals on the same pixels, and scores."""
