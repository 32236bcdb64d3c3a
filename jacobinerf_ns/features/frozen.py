"""What teachers that run a frozen transformer share: how exactly and in which batches it runs, and what it is shown."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import FeatureGrid, Frame, load_rgb
from jacobinerf_ns.features.streaming import read_ahead

Running = TypeVar("Running")


class ReadImage(NamedTuple):
    """An image as it was read and resized for the model."""

    place: int
    """Among the frames that were asked for."""
    pixels: UInt8[np.ndarray, "height width 3"]


def precision_of(given: str, device: torch.device) -> torch.dtype:
    """Return what a model calculates in; `auto` is bfloat16 on a GPU, float32 on a CPU."""
    if given == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[given]


def batch_size_of(given: int | None, device: torch.device, on_gpu: int) -> int:
    """Return how many images run together: those given, or one on a CPU and `on_gpu` on a GPU.

    Raises:
        UserError: fewer than one.
    """
    if given is not None and given < 1:
        raise UserError(f"batch size {given} given, expected 1 image or more: give --batch-size 1")
    return given or (1 if device.type == "cpu" else on_gpu)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the parameters of a model to `dtype`, and no buffer: angles of rotary positions stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def read_resized(place: int, frame: Frame, load_size: int, patch: int) -> ReadImage:
    """Read an image, its shorter side resized to about `load_size` pixels and both sides to whole patches.

    Raises:
        UserError: the file is missing or no image.
    """
    image = load_rgb(frame.path)
    scale = load_size / min(image.size)
    width, height = (max(1, round(side * scale / patch)) * patch for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return ReadImage(place, np.array(image))


def normalised(
    images: UInt8[Tensor, "images height width 3"], mean: Float[Tensor, "3"], std: Float[Tensor, "3"]
) -> Float[Tensor, "images 3 height width"]:
    """Return images of bytes with the mean and deviation of colours (0..1) that a model was trained with."""
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def run_ahead(
    frames: Sequence[Frame],
    most: int,
    device: torch.device,
    read: Callable[[int], ReadImage],
    start: Callable[[list[ReadImage]], Running],
    finish: Callable[[Running], Iterator[tuple[int, FeatureGrid]]],
) -> Iterator[tuple[int, FeatureGrid]]:
    """Yield places and features of frames as they are ready, at most `most` of one size together.

    While a GPU is at work on what was started, the next images are read, and what it made before is finished.

    Raises:
        UserError: of `read`; features of images before that one are yielded first.
    """
    before: list[Running] = []

    def finished(running: list[Running]) -> Iterator[tuple[int, FeatureGrid]]:
        for one in running:
            yield from finish(one)

    try:
        for images in read_ahead(read, _of_one_size(frames, most)):
            images.sort(key=lambda image: image.pixels.shape)
            running = [start(list(group)) for _, group in groupby(images, lambda image: image.pixels.shape)]
            yield from finished(before)
            before = running
            if device.type == "cpu":  # where nothing goes on by itself
                yield from finished(before)
                before = []
    except UserError:
        yield from finished(before)
        raise
    yield from finished(before)


def _of_one_size(frames: Sequence[Frame], most: int) -> list[list[int]]:
    """Places of frames, at most so many in a list, and those in a list of one size; files may be larger."""

    def size(i: int) -> tuple[int, int]:
        return frames[i].size

    found = []
    for _, group in groupby(sorted(range(len(frames)), key=size), size):
        places = list(group)
        found += [places[start : start + most] for start in range(0, len(places), most)]
    return found
