"""Photographs of a large capture in memory as bytes: a quarter of what nerfstudio's floats take, and no second copy."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from random import sample
from typing import Any
from unittest import mock

import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import variable_res_collate
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import CacheDataloader
from nerfstudio.utils.misc import get_dict_to_torch
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.progress import track

THREADS = 4
_HIGHEST = 255


def float_bytes(cameras: Cameras) -> int:
    """Memory that the images of these cameras take as nerfstudio holds them, three float32 a pixel."""
    return int((cameras.height.long() * cameras.width.long()).sum()) * 3 * 4


@contextmanager
def images_as_bytes() -> Iterator[None]:
    """Inside the block, nerfstudio's data managers that set themselves up hold images as bytes."""
    with mock.patch("nerfstudio.data.datamanagers.base_datamanager.CacheDataloader", ByteDataloader):
        yield


def as_floats(pixels: UInt8[Tensor, "*shape channels"]) -> Float[Tensor, "*shape channels"]:
    """Colours 0..1 from bytes, to the last bit those that nerfstudio reads from an image file."""
    return pixels.float() / _HIGHEST


def as_bytes(image: Float[Tensor, "height width channels"]) -> UInt8[Tensor, "height width channels"]:
    """Return the bytes of an image file from its colours 0..1; what was blended with a background is rounded."""
    return (image * _HIGHEST).round().clamp(0, _HIGHEST).to(torch.uint8)


class ByteDataloader(CacheDataloader):
    """nerfstudio's cache of images, filled one by one; batches are the same but for `image`, which is in bytes.

    nerfstudio reads all images as floats and then stacks them: eight times what they take here, for a moment.
    """

    dataset: InputDataset

    def _get_collated_batch(self) -> dict[str, Any]:
        """Return what the pixel sampler draws from, on our device where that was asked for.

        Raises:
            UserError: photographs of several shapes.
        """
        chosen = sample(range(len(self.dataset)), k=self.num_images_to_sample_from)
        with ThreadPoolExecutor(THREADS) as pool:
            stacks = {} if self.collate_fn is variable_res_collate else self._stacks(chosen)
            jobs = pool.map(partial(self._read, stacks=stacks), chosen, range(len(chosen)))
            rest = list(track(jobs, "Loading images", total=len(chosen), transient=True))
        batch = {**self.collate_fn(rest), **stacks}
        return get_dict_to_torch(batch, device=self.device, exclude=self.exclude_batch_keys_from_device)

    def _stacks(self, chosen: list[int]) -> dict[str, Tensor]:
        """Room for all tensors of the chosen items, by name.

        Were tensors kept apart until all are read, small ones would lie in the holes that large temporaries leave, and
        the allocator could use neither again: twice the memory.
        """
        first = self._read(chosen[0], 0, {})
        tensors = {key: value for key, value in first.items() if isinstance(value, Tensor)}
        return {key: value.new_empty(len(chosen), *value.shape) for key, value in tensors.items()}

    def _read(self, index: int, row: int, stacks: dict[str, Tensor]) -> dict[str, Any]:
        """One item of the data set, its image in bytes; what there is a stack for goes there, into its row."""
        data = self.dataset[index]
        data["image"] = as_bytes(data["image"])
        for key, stack in stacks.items():
            value = data.pop(key)
            if value.shape != stack.shape[1:]:
                raise UserError(
                    f"{self.dataset.image_filenames[index]}: {key} has shape {tuple(value.shape)}, another image's "
                    f"{tuple(stack.shape[1:])} (height, width, channels): convert them to be alike"
                )
            stack[row] = value
        return data
