"""What a feature store costs: page cache, which the system takes back, and next to nothing else."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from jacobinerf_ns.features.base import covering_grid
from jacobinerf_ns.features.cache import fill
from jacobinerf_ns.features.store import FeatureStore

FILES, MEGABYTE = 64, 1e6


def anonymous_bytes() -> int:
    """Memory of this process that belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_all_features_leaves_them_in_the_page_cache(tmp_path: Path):
    def make(i: int):
        return covering_grid(torch.full((60, 80, 64), float(i))), tmp_path

    filled = fill(tmp_path, [f"{i}" for i in range(FILES)], make, "Making features")
    gc.collect()
    before = anonymous_bytes()
    store = FeatureStore(filled, [(480, 640)] * FILES)
    places = torch.rand(64, 512, 3, generator=torch.Generator().manual_seed(0))
    for place in places:
        indices = (place * torch.tensor([FILES, 480, 640])).long()
        torch.testing.assert_close(store.sample(indices)[:, 0], indices[:, 0].float())
    added = anonymous_bytes() - before
    assert store.num_bytes > 39 * MEGABYTE
    assert added < 8 * MEGABYTE
