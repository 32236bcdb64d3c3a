"""Files that are whole or not there, made once, read without being copied."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, covering_grid, sample
from jacobinerf_ns.features.cache import (
    DamagedFile,
    default_cache_dir,
    extract_all,
    frame_key,
    read_grid,
    write_grid,
)
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig


@dataclass
class Counting:
    """An extractor that counts, and stops when told to."""

    stop_at: int | None = None
    calls: list[int] = field(default_factory=list)

    def fingerprint(self) -> str:
        return "f" * 64

    def check(self, frames) -> None:
        pass

    def sources(self, frame: Frame):
        return [frame.path]

    def extract(self, frame: Frame) -> FeatureGrid:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(frame.index)
        return covering_grid(torch.full((2, 3, 4), float(frame.index)))


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return [Frame(i, tmp_path / f"{i}.png", (8, 8)) for i in range(5)]


def test_a_grid_comes_back_in_half_precision(tmp_path: Path):
    grid = FeatureGrid(torch.randn(3, 5, 7), origin=(0.1, 0.07), step=(0.2, 0.143))
    write_grid(tmp_path / "g.safetensors", grid, Path("image.png"))
    found = read_grid(tmp_path / "g.safetensors")
    assert torch.equal(found.values, grid.values.half())
    assert (found.origin, found.step) == (grid.origin, grid.step)


def test_nothing_is_extracted_twice_and_an_interrupted_run_goes_on(frames, tmp_path: Path):
    interrupted = Counting(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        extract_all(interrupted, frames, tmp_path / "cache")
    resumed = Counting()
    filled = extract_all(resumed, frames, tmp_path / "cache")
    assert (interrupted.calls, resumed.calls) == ([0, 1], [2, 3, 4])
    assert filled.made == 3
    again = Counting()
    assert extract_all(again, frames, tmp_path / "cache").made == 0
    assert again.calls == []
    assert [read_grid(path).values[0, 0, 0].item() for path in filled.paths] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in filled.paths[0].parent.iterdir()) == sorted(path.name for path in filled.paths)


def test_damaged_files_are_redone_with_one_warning(frames, tmp_path: Path, capsys):
    paths = extract_all(Counting(), frames, tmp_path / "cache").paths
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(whole[0][:-5])
    paths[1].write_bytes(b"")
    save_file({"features": torch.zeros(4, 4).half()}, paths[2], metadata={"grid": "{}"})
    nan = covering_grid(torch.zeros(2, 3, 4))
    nan.values[1, 2, 3] = float("nan")
    geometry = {"origin": nan.origin, "step": nan.step, "shape": [2, 3, 4]}
    save_file({"features": nan.values.half()}, paths[3], metadata={"grid": json.dumps(geometry)})
    capsys.readouterr()
    redone = Counting()
    extract_all(redone, frames, tmp_path / "cache")
    assert redone.calls == [0, 1, 2, 3]
    assert capsys.readouterr().out.count("warning: 4 damaged feature file(s)") == 1
    assert [path.read_bytes() for path in paths] == whole


def test_read_grid_refuses_other_layouts(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for tensors, metadata in [
        ({"features": torch.zeros(2, 3, 4)}, {"grid": '{"origin":[0,0],"step":[1,1],"shape":[2,3,4]}'}),
        ({"features": torch.zeros(2, 3, 4).half()}, {"grid": '{"origin":[0,0],"step":[1,1],"shape":[2,3,5]}'}),
        ({"features": torch.zeros(2, 3, 4).half()}, {"grid": "no json"}),
        ({"features": torch.zeros(2, 3, 4).half()}, None),
        ({"others": torch.zeros(2, 3, 4).half()}, {"grid": '{"origin":[0,0],"step":[1,1],"shape":[2,3,4]}'}),
    ]:
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(DamagedFile):
            read_grid(path)


def test_features_that_are_not_finite_name_the_image_and_keep_the_rest(frames, tmp_path: Path):
    class Failing(Counting):
        def extract(self, frame: Frame) -> FeatureGrid:
            grid = super().extract(frame)
            return replace(grid, values=grid.values / (0 if frame.index == 3 else 1))

    with pytest.raises(UserError, match=r"the features of .*3\.png are not all finite"):
        extract_all(Failing(), frames, tmp_path / "cache")
    resumed = Counting()
    extract_all(resumed, frames, tmp_path / "cache")
    assert resumed.calls == [3, 4]


def test_equal_images_are_extracted_once(frames, tmp_path: Path):
    frames[4].path.write_bytes(frames[0].path.read_bytes())
    counting = Counting()
    assert extract_all(counting, frames, tmp_path / "cache").made == 4
    assert len(counting.calls) == 4


def test_keys_follow_bytes_and_sizes_and_fingerprints_follow_settings(frames, tmp_path: Path):
    handcrafted = HandcraftedConfig().setup()
    key = frame_key(handcrafted, frames[0])
    moved = tmp_path / "moved.png"
    moved.write_bytes(frames[0].path.read_bytes())
    assert frame_key(handcrafted, replace(frames[0], path=moved, index=9)) == key
    assert frame_key(handcrafted, replace(frames[0], size=(4, 4))) != key
    moved.write_bytes(moved.read_bytes() + b"x")
    assert frame_key(handcrafted, replace(frames[0], path=moved)) != key
    configs = [
        HandcraftedConfig(),
        HandcraftedConfig(cell=8),
        OracleConfig(),
        OracleConfig(noise=2.0),
        OracleConfig(seed=1),
    ]
    assert len({config.setup().fingerprint() for config in configs}) == len(configs)
    assert OracleConfig().setup().fingerprint() == OracleConfig().setup().fingerprint()


def test_the_oracle_s_key_follows_its_label_maps(frames, tmp_path: Path):
    labels = tmp_path / "labels.png"
    Image.new("L", (8, 8), 1).save(labels)
    frame = replace(frames[0], semantics=labels)
    key = frame_key(OracleConfig().setup(), frame)
    Image.new("L", (8, 8), 2).save(labels)
    assert frame_key(OracleConfig().setup(), frame) != key


def test_the_cache_is_below_xdg_cache_home(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "jacobinerf-ns" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "jacobinerf-ns" / "features"


_MEASURE = """
import sys
from pathlib import Path
import torch
from jacobinerf_ns.features.cache import Filled
from jacobinerf_ns.features.store import FeatureStore

def private_kilobytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

paths = sorted(Path(sys.argv[1]).glob("*.safetensors"))
FeatureStore(Filled(paths[:1], 0, 0.0), [(64, 64)]).sample(torch.zeros(512, 3, dtype=torch.long))
before = private_kilobytes()
store = FeatureStore(Filled(paths, 0, 0.0), [(64, 64)] * len(paths))
for image in range(len(paths)):
    place = torch.randint(0, 64, (512, 3))
    place[:, 0] = image
    store.sample(place)
print(private_kilobytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="private memory is read from /proc (Linux)")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path):
    grid = covering_grid(torch.zeros(64, 64, 256))
    for i in range(40):
        write_grid(tmp_path / f"{i}.safetensors", grid, Path("image.png"))
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir()) / 1024
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    grown = int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert on_disk > 80_000
    assert grown < 0.1 * on_disk


def test_an_open_grid_keeps_no_file_descriptor(tmp_path: Path):
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("descriptors are counted in /proc (Linux)")
    write_grid(tmp_path / "g.safetensors", covering_grid(torch.zeros(2, 2, 2)), Path("image.png"))
    read_grid(tmp_path / "g.safetensors")
    before = len(list(descriptors.iterdir()))
    grids = [read_grid(tmp_path / "g.safetensors") for _ in range(20)]
    assert len(list(descriptors.iterdir())) - before < 5
    assert sample(grids[7], torch.tensor([[0.5, 0.5]])).shape == (1, 2)


def test_half_precision_is_close_enough(tmp_path: Path):
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 8, 64)).astype(np.float32)) * 10
    write_grid(tmp_path / "g.safetensors", covering_grid(values), Path("image.png"))
    half = read_grid(tmp_path / "g.safetensors").values.float()
    assert torch.cosine_similarity(half, values, dim=-1).min() > 1 - 1e-6
