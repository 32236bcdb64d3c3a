"""The teachers as sub-commands, and `jacobinerf features`."""

from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from test_datamanager import make_capture

from jacobinerf_ns.cli.features import Features
from jacobinerf_ns.datamanager import FeatureDataManagerConfig
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.features.store import FeatureStore
from jacobinerf_ns.features.surfaces import SurfacesConfig


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], DinoConfig()),
        (["dino", "--facet", "token", "--stride", "0"], DinoConfig(facet="token", stride=0)),
        (["handcrafted", "--cell", "8"], HandcraftedConfig(cell=8)),
        (["surfaces", "--look-share", "0.5"], SurfacesConfig(look_share=0.5)),
        (["precomputed", "--folder", "f", "--layout", "dim-rows-cols"], PrecomputedConfig(Path("f"), "dim-rows-cols")),
        (["oracle", "--noise", "3", "--per-instance"], OracleConfig(noise=3.0, per_instance=True)),
    ],
)
@pytest.mark.parametrize("parser", [[], ["nerfstudio-data", "--downscale-factor", "4"]])
def test_teachers_are_sub_commands(arguments, expected, parser):
    config = tyro.cli(FeatureDataManagerConfig, args=[*arguments, *parser])
    assert config.extractor == expected
    if parser:
        assert getattr(config.dataparser, "downscale_factor", None) == 4
    assert tyro.cli(Features, args=["--data", "x", *arguments]).extractor == expected


def test_features_are_extracted_once_and_reported(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data = make_capture(tmp_path / "capture", [(24, 32)] * 6)
    arguments = ["--data", str(data), "--cache-dir", str(tmp_path / "cache"), "--downscale-factor", "2"]
    command = tyro.cli(Features, args=[*arguments, "--feature-dim", "6", "handcrafted", "--cell", "2"])
    store = command.main()
    assert isinstance(store, FeatureStore)
    printed = capsys.readouterr().out
    assert (len(store), store.dim, store.sizes[0]) == (4, 6, (12, 16))
    assert str(store.folder) in printed
    assert "4 images, 6 dimensions, 0.0 MB; 4 extracted at" in printed
    assert "images/s" in printed
    command.preview = tmp_path / "look.png"
    command.main()
    assert "all were there already" in capsys.readouterr().out
    with Image.open(command.preview) as sheet:
        assert sheet.size[1] > 4 * 200  # four photographs, one above the other
        assert len(set(sheet.convert("RGB").getdata())) > 50


def test_bad_input_is_one_line(tmp_path: Path):
    data = make_capture(tmp_path / "capture", [(12, 16)] * 6)
    with pytest.raises(UserError, match=r"lacks features for 4 of 4 images"):
        Features(data, extractor=PrecomputedConfig(folder=data), cache_dir=tmp_path / "cache").main()
    with pytest.raises(UserError, match="device nonsense cannot be used here"):
        Features(data, extractor=HandcraftedConfig(), cache_dir=tmp_path / "cache", device="nonsense").main()
    with pytest.raises(UserError, match="give --load-config"):
        Features(data, extractor=SurfacesConfig()).main()
    with pytest.raises(UserError, match="expected one of them"):
        Features(extractor=HandcraftedConfig()).main()
    np.save(data / "arrays" / "0004.npy", np.full((2, 2, 3), np.inf))
    with pytest.raises(UserError, match=r"the features of .*0004\.npy are not all finite"):
        Features(data, extractor=PrecomputedConfig(folder=data / "arrays"), cache_dir=tmp_path / "cache").main()


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path):
    data = make_capture(tmp_path / "capture", [(12, 16)] * 6)
    path = data / "images" / "0002.png"
    Image.open(path).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"0002\.png cannot be read as an image"):
        Features(data, extractor=HandcraftedConfig(), cache_dir=tmp_path / "cache").main()
