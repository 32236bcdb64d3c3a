"""What a person says about a capture: the file, its changes, and the rays its seeds stand for."""
