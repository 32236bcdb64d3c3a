"""A GPU that is there and that torch cannot use: an old driver, or a torch that was built for the CPU."""

import os
import shutil
import subprocess
from pathlib import Path

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
"""The Linux driver keeps a folder for each GPU in it."""
PATIENCE = 10
"""Seconds that `nvidia-smi` may take; without its driver it answers at once."""


def sign_of_gpu() -> str | None:
    """Say what shows that an NVIDIA GPU is there, whatever torch says; None where nothing does.

    A GPU that the variable hides (an empty value, or -1) was taken away on purpose, and is not there.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        shown = visible.strip() and not visible.strip().startswith("-1")
        return f"{VISIBLE} is {visible}" if shown else None
    if DRIVER_FOLDER.is_dir() and any(DRIVER_FOLDER.iterdir()):
        return f"{DRIVER_FOLDER} has it"
    return "nvidia-smi lists it" if _listed() else None


def torch_in_words() -> str:
    """Name torch's version and the CUDA that it was built for."""
    built_for = torch.version.cuda
    return f"torch {torch.__version__} ({f'built for CUDA {built_for}' if built_for else 'built without CUDA'})"


def _listed() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        found = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0 and found.stdout.startswith("GPU ")
