"""Shared by all tests: shapes are checked at run time, one thread, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

from jaxtyping import install_import_hook

# The mathematics is checked against its own shape annotations while the tests run.
CHECKED = (
    "jacobian",
    "hash_grid",
    "gathering",
    "correspondence",
    "shaping",
    "metrics",
    "propagation",
    "refinement",
    "aggregator",
    "world",
    "seeds",
    "seed_pixels",
    "probe",
)
install_import_hook([f"jacobinerf_ns.{name}" for name in CHECKED], "beartype.beartype")
