"""Digests that stand in files and in names of files keep their values: caches and results of earlier versions count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jacobinerf_ns.annotations.formats.png import write_index_png
from jacobinerf_ns.annotations.formats.seeds_io import import_seeds
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.dataparsers import downscale, label_copies
from jacobinerf_ns.features import hub
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid
from jacobinerf_ns.features.cache import frame_key, write_grid
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.pca import project_all
from jacobinerf_ns.files.digests import digest, digest_of_each, tensor_bytes


class FileAndFact:
    """A teacher whose features depend on a file and a fact."""

    def fingerprint(self) -> str:
        return ""

    def check(self, frames) -> None:
        pass

    def sources(self, frame: Frame):
        return [frame.path, "12x9"]

    def extract(self, frame: Frame) -> FeatureGrid:
        raise NotImplementedError


def test_fingerprints_of_teachers():
    handcrafted = "e5d5c7cbae67c2c3c21218497a04c4bafa86ea59d318324d7fb9ab1a5318295b"
    assert HandcraftedConfig().setup().fingerprint() == handcrafted
    oracle = "f907c56164e40b34ae0a5d0882875aa9d0f1edf1e3cefba7af8c016c1c678db3"
    assert OracleConfig().setup().fingerprint() == oracle


def test_names_of_cached_features(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"bytes of a file")
    assert frame_key(FileAndFact(), Frame(0, tmp_path / "a", (1, 1))) == "be11332529bb7659485840b438f24840"
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for file in files:
        write_grid(file, covering_grid(torch.arange(24.0).view(2, 3, 4)), file)
    assert project_all(files, 2, center=False).paths[0].parent.name == "pca-2-52c3f24d1fd3fa44308d"


def test_weights():
    """Of a teacher (in fingerprints), of a run in feature_field.pt, and of a run in propagation.json."""
    model = nn.Linear(3, 2)
    model.load_state_dict({"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])})
    assert hub.digest_of_weights(model) == "c08597c03bfd1eaabd78c356c73be99c6a192a9d40be851119000ff50258ff60"
    parts = [tensor_bytes(tensor) for tensor in model.state_dict().values()]
    assert digest(parts) == "f0520efda1b9bee9a68c959e89b9e8140a89c014deccfe60b8d14f13f19e8988"
    assert digest_of_each([b"ab", b"c"]) == "115323e562c4a4fdf7ceacedca660dc4bbe1389dab9323aad08440907c7426d0"
    assert digest_of_each([b"a", b"bc"]) == "fa19a6c0df56998a0e234d9f4e324b43cd2b6101f7df6b8ecb0a162af63270a0"


def test_names_of_copies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    folder = Path("/cache/jacobinerf-ns/downscaled/capture-x2-a174989b90cc/area-jpg")
    assert downscale.copy_of(Path("/capture/images/1.jpg"), 2, Path("/capture"), "area") == folder / "images/1.png"
    elsewhere = downscale.copy_of(Path("/other/1.jpg"), 2, Path("/capture"), "area")
    assert elsewhere == folder / "elsewhere-bf2faee25960/1.png"
    labels = Path("/cache/jacobinerf-ns/labels/scene-label-filt-b1b8a37da623")
    assert label_copies.folder_of_copies(Path("/scene/label-filt")) == labels


def test_names_of_imported_masks(tmp_path: Path):
    write_index_png(tmp_path / "7.png", np.array([[0, 1], [1, 0]]), [Label(id=1, name="x", colour=(1, 2, 3))])
    import_seeds(Annotations(), tmp_path / "7.png", tmp_path, {"images/7.jpg": (2, 2)})
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["7-a04d97f560.png"]
