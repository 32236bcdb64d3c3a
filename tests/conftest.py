"""Shared by all tests: shapes are checked at run time, one thread, no network, one browser at a time."""

import os
from pathlib import PurePath
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

from jaxtyping import install_import_hook

# The mathematics is checked against its own shape annotations while the tests run.
CHECKED = (
    "core.jacobian",
    "core.gathering",
    "core.matching",
    "core.metrics",
    "core.propagation",
    "core.refinement",
    "hash_grid.grid",
    "shaping",
    "evaluation.rivals.aggregator",
    "evaluation.rivals.linear_probe",
    "annotations.frames",
    "annotations.rays",
    "annotations.rasterise",
)
install_import_hook([f"jacobinerf_ns.{name}" for name in CHECKED], "beartype.beartype")

IN_A_BROWSER = (
    "test_browser_harness.py",
    "test_panel_browser.py",
    "test_panel_pictures.py",
    "test_panel_saving.py",
    "test_panel_training.py",
)
"""For pytest-xdist one file: a viewer and Chromium keep two cores busy, two of each would wait for each other."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first, so that no worker begins a long file when the others are done: browser, training, the rest."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in IN_A_BROWSER, item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, with all tests in a browser as one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneBrowser(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "browser" if PurePath(file).name in IN_A_BROWSER else file

    return OneBrowser(config, log)
