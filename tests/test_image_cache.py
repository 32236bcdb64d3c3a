"""Images held as bytes: the same batches in a quarter of the memory."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.utils.dataloaders import CacheDataloader
from PIL import Image
from test_datamanager import COUNT, make_capture

from jacobinerf_ns import datamanager
from jacobinerf_ns.compat.byte_images import as_bytes, as_floats, float_bytes
from jacobinerf_ns.datamanager import FeatureDataManager, FeatureDataManagerConfig
from jacobinerf_ns.errors import UserError

UNIFORM = [(12, 16)] * COUNT
MIXED = [(12, 16), (16, 12), (9, 11), (12, 16), (20, 10), (8, 8)]


def manager(data: Path, **settings) -> FeatureDataManager:
    random.seed(0)
    torch.manual_seed(0)
    config = FeatureDataManagerConfig(data=data, train_num_rays_per_batch=64, eval_num_rays_per_batch=32, **settings)
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


def held_as(images: CacheDataloader) -> torch.dtype:
    assert images.cached_collated_batch is not None
    return images.cached_collated_batch["image"][0].dtype


def add_masks(data: Path) -> None:
    """Masks that let the upper half of every image through."""
    meta = json.loads((data / "transforms.json").read_text())
    for frame in meta["frames"]:
        mask = np.zeros((frame["h"], frame["w"]), dtype=np.uint8)
        mask[: frame["h"] // 2] = 255
        frame["mask_path"] = f"mask-{Path(frame['file_path']).stem}.png"
        Image.fromarray(mask).save(data / frame["mask_path"])
    (data / "transforms.json").write_text(json.dumps(meta))


# Masks with images of mixed sizes end nerfstudio's own pixel sampler.
@pytest.mark.parametrize(("sizes", "masks"), [(UNIFORM, False), (UNIFORM, True), (MIXED, False)])
@pytest.mark.parametrize("from_images", [-1, 2])
def test_batches_are_nerfstudios_to_the_last_bit(tmp_path: Path, sizes, masks: bool, from_images: int):
    data = make_capture(tmp_path / "capture", sizes)
    if masks:
        add_masks(data)
    drawn = []
    for as_they_are in (False, True):
        settings = {"train_num_images_to_sample_from": from_images, "train_num_times_to_repeat_images": 2}
        found = manager(data, images_as_bytes=as_they_are, **settings)
        drawn.append([found.next_train(step)[1] for step in range(5)] + [found.next_eval(0)[1]])
        assert held_as(found.train_image_dataloader) == (torch.uint8 if as_they_are else torch.float32)
    for expected, batch in zip(*drawn, strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
        assert batch["image"].dtype == torch.float32


def test_bytes_and_floats_go_into_each_other():
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256).permute(0, 2, 1)
    assert torch.equal(as_bytes(as_floats(levels)), levels)
    # nerfstudio's own conversion, in numpy
    assert np.array_equal(as_floats(levels).numpy(), levels.numpy().astype("float32") / 255.0)
    blended = torch.tensor([[[1.0, 0.5, 0.2019]]])
    assert as_bytes(blended).tolist() == [[[255, 128, 51]]]


def test_only_large_captures_are_held_as_bytes_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = make_capture(tmp_path / "capture", UNIFORM)
    small = manager(data)
    assert held_as(small.train_image_dataloader) == torch.float32
    train, held_out = float_bytes(small.train_dataset.cameras), float_bytes(small.eval_dataset.cameras)
    assert (train, held_out) == (4 * 12 * 16 * 3 * 4, 2 * 12 * 16 * 3 * 4)
    monkeypatch.setattr(datamanager, "LARGE_CAPTURE", train)
    large = manager(data)
    assert held_as(large.train_image_dataloader) == torch.uint8
    assert held_as(large.eval_image_dataloader) == torch.float32


def test_sizes_are_counted_in_64_bits():
    count = 6000
    poses = torch.eye(4)[None, :3].repeat(count, 1, 1)
    cameras = Cameras(poses, 500.0, 500.0, 320.0, 240.0, width=640, height=480)
    assert float_bytes(cameras) == count * 640 * 480 * 3 * 4 > 2**32


def test_images_that_do_not_stack_are_named(tmp_path: Path):
    data = make_capture(tmp_path / "capture", UNIFORM)
    odd = data / "images" / "0004.png"
    Image.open(odd).convert("RGBA").save(odd)
    with pytest.raises(UserError, match=r"0004\.png is transparent and .*0001\.png is not"):
        manager(data, images_as_bytes=True)
