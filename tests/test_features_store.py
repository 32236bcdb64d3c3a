"""Pixels of many images at once, projected or not."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, pixel_positions, sample
from jacobinerf_ns.features.pca import fit
from jacobinerf_ns.features.store import fits_on, open_store

SIZES = [(12, 16), (30, 20), (7, 9)]


@dataclass
class Given:
    """An extractor with features made up beforehand."""

    grids: list[FeatureGrid]
    calls: list[int] = field(default_factory=list)

    def fingerprint(self) -> str:
        return "e" * 64

    def check(self, frames) -> None:
        pass

    def sources(self, frame: Frame):
        return [frame.path]

    def extract(self, frame: Frame) -> FeatureGrid:
        self.calls.append(frame.index)
        return self.grids[frame.index]


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    for i, (height, width) in enumerate(SIZES):
        Image.new("RGB", (width, height), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return [Frame(i, tmp_path / f"{i}.png", size) for i, size in enumerate(SIZES)]


@pytest.fixture
def given() -> Given:
    torch.manual_seed(0)
    odd = FeatureGrid(torch.randn(5, 3, 8), origin=(0.13, 0.2), step=(0.18, 0.3))
    return Given([covering_grid(torch.randn(3, 4, 8)), odd, covering_grid(torch.randn(1, 2, 8))])


def random_pixels(count: int) -> torch.Tensor:
    """Rows of (image, row, col)."""
    images = torch.randint(len(SIZES), (count,))
    return torch.stack([images, *(torch.rand(2, count) * torch.tensor(SIZES)[images].T).long()], dim=1)


def one_by_one(grids: list[FeatureGrid], indices: torch.Tensor) -> torch.Tensor:
    """What the store has to give, image by image."""
    rows = [
        sample(grids[i], pixel_positions(torch.tensor([[y, x]]), torch.tensor([SIZES[i]])))
        for i, y, x in indices.tolist()
    ]
    return torch.cat(rows)


def test_sampling_of_mixed_sizes_and_grids(given: Given, frames, tmp_path: Path):
    store = open_store(given, frames, tmp_path / "cache")
    indices = random_pixels(300)
    found = store.sample(indices)
    assert (found.dtype, found.shape, len(store), store.dim) == (torch.float32, (300, 8), 3, 8)
    torch.testing.assert_close(found, one_by_one(given.grids, indices), atol=3e-3, rtol=0)
    assert store.num_bytes == sum(path.stat().st_size for path in store.folder.iterdir())


def test_sampling_in_chunks_changes_nothing(given: Given, frames, tmp_path: Path, monkeypatch):
    store = open_store(given, frames, tmp_path / "cache")
    indices = random_pixels(100)
    whole = store.sample(indices)
    monkeypatch.setattr("jacobinerf_ns.features.store._CHUNK", 7)
    torch.testing.assert_close(store.sample(indices), whole)


def test_resident_features_are_those_of_the_files(given: Given, frames, tmp_path: Path):
    store = open_store(given, frames, tmp_path / "cache")
    resident = store.resident("cpu")
    indices = random_pixels(300)
    found = resident.sample(indices)
    torch.testing.assert_close(found, store.sample(indices), atol=1e-6, rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # as a training step's, on a GPU
        assert torch.equal(resident.sample(indices), found)
    assert store.value_bytes == resident._values.nbytes == 2 * 8 * (12 + 15 + 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_in_a_gpu_are_those_of_the_files(given: Given, frames, tmp_path: Path):
    store = open_store(given, frames, tmp_path / "cache")
    indices = random_pixels(300)
    found = store.resident("cuda").sample(indices)
    torch.testing.assert_close(found.cpu(), store.sample(indices), atol=1e-5, rtol=1e-5)


def test_resident_features_are_looked_up_on_their_device_alone(given: Given, frames, tmp_path: Path):
    store = open_store(given, frames, tmp_path / "cache")
    with FakeTensorMode(allow_non_fake_inputs=True):
        resident = store.resident("cuda")
        found = resident.sample(torch.zeros(5, 3, dtype=torch.long, device="cuda"))
        assert (found.device.type, found.shape, found.dtype) == ("cuda", (5, 8), torch.float32)


def test_features_stay_on_a_gpu_within_budget_and_free_memory(monkeypatch: pytest.MonkeyPatch):
    gpu, free = torch.device("cuda", 0), 10**9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 8 * free))
    assert fits_on(gpu, 400_000_000, budget=0.4)
    assert not fits_on(gpu, 400_000_001, budget=0.4)
    assert not fits_on(gpu, 500_000_001, budget=4.0)
    assert not fits_on(torch.device("cpu"), 1, budget=4.0)


def test_projection_keeps_scalar_products_and_is_made_once(frames, tmp_path: Path):
    torch.manual_seed(1)
    basis = torch.randn(2, 8)
    grids = [covering_grid(torch.randn(4, 4, 2) @ basis + 0.001 * torch.randn(4, 4, 8)) for _ in SIZES]
    given = Given(grids)
    full = open_store(given, frames, tmp_path / "cache")
    small = open_store(given, frames, tmp_path / "cache", feature_dim=2)
    indices = random_pixels(60)
    a, b = full.sample(indices), small.sample(indices)
    assert b.shape == (60, 2)
    torch.testing.assert_close(b @ b.T, a @ a.T, atol=0.05, rtol=0.01)
    assert given.calls == [0, 1, 2]
    before = {path: path.stat().st_mtime_ns for path in small.folder.iterdir()}
    again = open_store(given, frames, tmp_path / "cache", feature_dim=2)
    assert {path: path.stat().st_mtime_ns for path in again.folder.iterdir()} == before
    torch.testing.assert_close(again.sample(indices), b)


def test_projection_belongs_to_its_members_and_choices(given: Given, frames, tmp_path: Path):
    def folder(members, feature_dim, center):
        return open_store(given, members, tmp_path / "cache", feature_dim, center).folder

    folders = [
        folder(frames, 4, False),
        folder(frames, 4, True),
        folder(frames, 3, False),
        folder(frames[:2], 4, False),
    ]
    assert len(set(folders)) == 4
    assert folder(list(reversed(frames)), 4, False) == folders[0]


def test_damaged_projections_are_made_again(given: Given, frames, tmp_path: Path):
    first = open_store(given, frames, tmp_path / "cache", feature_dim=3)
    indices = random_pixels(50)
    expected = first.sample(indices)
    for path in first.folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    redone = open_store(given, frames, tmp_path / "cache", feature_dim=3)
    torch.testing.assert_close(redone.sample(indices), expected, atol=1e-3, rtol=0)
    assert given.calls == [0, 1, 2]


def test_centring_takes_the_mean_off(frames, tmp_path: Path):
    torch.manual_seed(2)
    grids = [covering_grid(torch.randn(6, 6, 4) + torch.tensor([50.0, 0, 0, 0])) for _ in SIZES]
    store = open_store(Given(grids), frames, tmp_path / "cache", center=True)
    mean = torch.cat([grid.values.flatten(0, 1) for grid in grids]).mean(0)
    indices = random_pixels(50)
    torch.testing.assert_close(store.sample(indices), one_by_one(grids, indices) - mean, atol=0.05, rtol=0)


def test_fit_keeps_what_matters_and_says_how_much():
    torch.manual_seed(3)
    data = torch.randn(500, 6) * torch.tensor([10.0, 5, 1, 0.1, 0.1, 0.1]) + torch.tensor([0, 0, 20.0, 0, 0, 0])
    projection, kept = fit(data, 2, center=False)
    assert projection.basis[:, 0].abs().argmax() == 2
    torch.testing.assert_close(projection.basis.T @ projection.basis, torch.eye(2), atol=1e-5, rtol=0)
    energy = data.square().sum()
    assert kept == pytest.approx(((data @ projection.basis).square().sum() / energy).item(), rel=1e-4)
    centred, _ = fit(data, 2, center=True)
    assert centred.basis[:, 0].abs().argmax() == 0
    assert centred.basis[0, 0] > 0


def test_feature_dim_out_of_range_is_refused(given: Given, frames, tmp_path: Path):
    for dim in (0, 9):
        with pytest.raises(UserError, match=f"feature dim {dim} given, the features have 8: give 1 to 8"):
            open_store(given, frames, tmp_path / "cache", feature_dim=dim)


def test_images_of_different_dimension_are_named(given: Given, frames, tmp_path: Path):
    given.grids[2] = covering_grid(torch.randn(2, 2, 5))
    with pytest.raises(UserError, match=r"features of 2\.png have 5 dimensions, those of 0\.png 8"):
        open_store(given, frames, tmp_path / "cache")
