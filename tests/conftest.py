"""Shared by all tests: shapes are checked at run time, one thread, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

from jaxtyping import install_import_hook

# The mathematics is checked against its own shape annotations while the tests run.
install_import_hook(["jacobinerf_ns.jacobian", "jacobinerf_ns.shaping", "jacobinerf_ns.metrics"], "beartype.beartype")
