"""What all teachers share: frames go in, grids of features come out, pixels are read off between patch centres."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from jacobinerf_ns.files.digests import digest_of_text
from jacobinerf_ns.files.outside import open_picture


@dataclass(frozen=True)
class Frame:
    """One training image, and the files a teacher may look at."""

    index: int
    """Position of the image in its data set (the first column of nerfstudio's ray indices)."""
    path: Path
    """Image file."""
    size: tuple[int, int]
    """(height, width) of the image as it is trained on, pixels; the file may be larger."""
    original_size: tuple[int, int] | None = None
    """(height, width) the label maps were made for, pixels, where that differs from `size`."""
    semantics: Path | None = None
    """Class label map, if there is one."""
    instances: Path | None = None
    """Instance label map, if there is one."""


@dataclass(frozen=True)
class FeatureGrid:
    """Features at the centres of a regular grid of patches.

    Positions are (y, x) in units of the image's height and width (0..1): a grid fits its image at any resolution.
    """

    values: Float[Tensor, "rows cols dim"]
    """Features, float16 or float32."""
    origin: tuple[float, float]
    """Centre of patch (0, 0)."""
    step: tuple[float, float]
    """From one patch centre to the next, down and to the right."""


@runtime_checkable
class Extractor(Protocol):
    """A frozen teacher. Never trained, never part of a checkpoint, and let go of once the features are on disk."""

    def fingerprint(self) -> str:
        """Return the hash of the settings and of the weights, if there are any: equal hashes, equal features."""
        ...

    def check(self, frames: Sequence[Frame]) -> None:
        """Look, before any work is done, whether all frames can be served.

        Raises:
            UserError: some cannot; the message counts them.
        """
        ...

    def sources(self, frame: Frame) -> Sequence[Path | str]:
        """Return what the features of `frame` depend on besides: files (whose bytes count) and facts.

        The first is the file to blame if the features are no good.
        """
        ...

    def extract(self, frame: Frame) -> FeatureGrid:
        """Return the features of one image.

        Raises:
            UserError: a file cannot be used; the message names it.
        """
        ...


@runtime_checkable
class BatchExtractor(Extractor, Protocol):
    """A teacher that takes several images at once."""

    def extract_many(self, frames: Sequence[Frame]) -> Iterator[tuple[int, FeatureGrid]]:
        """Yield the place of each frame among `frames` and its features, in any order, as they are ready.

        Raises:
            UserError: a file cannot be used; the message names it.
        """
        ...


def fingerprint_of(name: str, settings: Any, weights: str = "", ignore: Sequence[str] = ()) -> str:
    """Return the hash of an extractor's name, its config (without fields in `ignore`) and its weights' hash."""
    known: Mapping[str, Any] = {key: value for key, value in asdict(settings).items() if key not in ignore}
    return digest_of_text(json.dumps([name, known, weights], sort_keys=True, default=str))


def covering_grid(values: Float[Tensor, "rows cols dim"]) -> FeatureGrid:
    """Return a grid whose cells tile the whole image, with the value of each cell at its centre."""
    rows, cols = values.shape[:2]
    return FeatureGrid(values, origin=(0.5 / rows, 0.5 / cols), step=(1 / rows, 1 / cols))


def pool_cells(pixels: Float[Tensor, "height width dim"], cell: int) -> Float[Tensor, "rows cols dim"]:
    """Return means over squares of about `cell` pixels, as many as tile the image (they may share a row of pixels)."""
    rows, cols = (max(1, round(side / cell)) for side in pixels.shape[:2])
    return torch.nn.functional.adaptive_avg_pool2d(pixels.permute(2, 0, 1), (rows, cols)).permute(1, 2, 0)


def load_rgb(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file as RGB, resized to `size` = (height, width) in pixels when given.

    Transparent pixels show white: what colours a PNG keeps under them is arbitrary, and would be taken for texture.

    Raises:
        UserError: it is missing or no image.
    """
    with open_picture(path, f"image {path}", "replace the file") as opened:
        picture: Image.Image = opened
        if opened.has_transparency_data:
            picture = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA"))
        image = picture.convert("RGB")
    if size is not None and image.size != size[::-1]:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return image


def pixel_positions(
    pixels: Int[Tensor, "rays 2"], size: Float[Tensor, "#rays 2"] | Int[Tensor, "#rays 2"]
) -> Float[Tensor, "rays 2"]:
    """Return the positions (y, x) in 0..1 of pixels (row, col) in images of `size` (height, width): their centres."""
    return (pixels + 0.5) / size


def corners(
    yx: Float[Tensor, "rays 2"],
    origin: Float[Tensor, "#rays 2"],
    step: Float[Tensor, "#rays 2"],
    shape: Int[Tensor, "#rays 2"],
) -> tuple[Int[Tensor, "rays 4"], Float[Tensor, "rays 4"]]:
    """Return the four patches around each position, as flat indices into a grid of `shape`, and bilinear weights.

    Beyond the outermost centres a position is moved to the nearest point between centres: nothing is extrapolated.
    """
    last = shape - 1
    place = torch.minimum(((yx - origin) / step).clamp_min(0), last.to(yx.dtype))
    low = torch.minimum(place.floor().long(), (last - 1).clamp_min(0))
    high = torch.minimum(low + 1, last)
    (fy, fx), (y0, x0), (y1, x1) = (place - low).unbind(-1), low.unbind(-1), high.unbind(-1)
    cols = shape[..., 1]
    flat = torch.stack([y0 * cols + x0, y0 * cols + x1, y1 * cols + x0, y1 * cols + x1], dim=-1)
    weights = torch.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx], dim=-1)
    return flat, weights


def sample(grid: FeatureGrid, yx: Float[Tensor, "rays 2"]) -> Float[Tensor, "rays dim"]:
    """Return the features at positions (y, x) in 0..1, float32: bilinear between centres, clamped at the border."""
    shape = torch.tensor(grid.values.shape[:2], device=yx.device)
    flat, weights = corners(yx, yx.new_tensor([grid.origin]), yx.new_tensor([grid.step]), shape[None])
    picked = grid.values.flatten(0, 1)[flat].float()
    return (picked * weights[..., None].float()).sum(1)
