"""The JacobiNeRF panel of nerfstudio's viewer: clicks, labels, edits, files. It changes annotations, nothing else."""
