"""The teacher that looks at the field being trained: what it finds, and where that is kept.

What is found is a handful of small tensors (`Surfaces`). They are in the cache, by the settings, the photos and the
field's weights, and in every checkpoint from then on: a resume goes on with the teacher that it began with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor, nn

from jacobinerf_ns.core.surfaces import FACING
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.cache import default_cache_dir
from jacobinerf_ns.features.palette import PaletteStore
from jacobinerf_ns.features.store import PixelFeatures
from jacobinerf_ns.features.surfaces import (
    Look,
    Surfaces,
    SurfacesConfig,
    feature_tables,
    find_surfaces,
    numbers_of,
    pooled_tables,
    seen_views,
    side_for,
)
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.files.digests import digest, digest_of_file, digest_of_text, tensor_bytes

STATE_PREFIX = "surfaces."
"""Of what is found, in checkpoints."""
_LIES = "lies"
"""What runs of before call `facing`, with two numbers more."""
_SUFFIX = ".safetensors"


class SurfacesState(nn.Module):
    """What was found, as buffers: none before the teacher has looked, so that other checkpoints are as they were."""

    def keep(self, found: Sequence[Surfaces]) -> None:
        """Take what was found."""
        for name, tensor in _named(found).items():
            self.register_buffer(name, tensor)

    def found(self) -> tuple[Surfaces, ...]:
        """Return what was found, if anything was."""
        return _unnamed(dict(self.named_buffers()))


def surfaces_in(state: Mapping[str, Tensor]) -> tuple[Surfaces, ...]:
    """Return what a checkpoint's pipeline holds of the teacher, if anything.

    Raises:
        UserError: it holds a part of it.
    """
    kept = {key.removeprefix(STATE_PREFIX): value for key, value in state.items() if key.startswith(STATE_PREFIX)}
    try:
        return _unnamed(kept)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"the checkpoint holds {', '.join(sorted(kept))} of the surfaces teacher, expected "
            f"{', '.join(Surfaces._fields)}: use an earlier checkpoint of the run"
        ) from error


def _named(found: Sequence[Surfaces]) -> dict[str, Tensor]:
    """Return all tensors by names: those of the first tree as they are called, and runs of before have no others."""
    return {
        name if tree == 0 else f"{name}_{tree}": tensor
        for tree, surfaces in enumerate(found)
        for name, tensor in surfaces._asdict().items()
    }


def _unnamed(kept: Mapping[str, Tensor]) -> tuple[Surfaces, ...]:
    """Return what the names say. Where it was not kept yet nothing merges in a tree, and nothing faces anywhere."""
    trees: dict[int, dict[str, Tensor]] = {}
    for key, tensor in kept.items():
        name, _, tree = key.partition("_")
        trees.setdefault(int(tree or 0), {})[name] = tensor
    return tuple(Surfaces(**_with_all(trees[tree])) for tree in range(len(trees)))


def _with_all(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    missing = {"merges": torch.zeros(0, 2, dtype=torch.int32), "heights": torch.zeros(0)}
    lies = kept.pop(_LIES, torch.zeros(kept["levels"].shape[1], FACING))
    return {**missing, "facing": lies[:, :FACING], **kept}


@dataclass
class Sight:
    """A field that can be looked at."""

    look: Look
    weights: Callable[[], Sequence[Tensor]]
    """All that the field is made of."""
    state: SurfacesState = field(default_factory=SurfacesState)
    """What the teacher found in it."""


def surfaces_of(
    sight: Sight, config: SurfacesConfig, frames: Sequence[Frame], cameras: Cameras, cache_dir: Path | None
) -> tuple[Surfaces, ...]:
    """Return what was found in the field, or look at its training views; what is found is kept from then on.

    Raises:
        UserError: there is nothing to be seen.
    """
    found = sight.state.found()
    if not found:
        key = _key(frames, cameras, sight.weights())
        folder = (cache_dir or default_cache_dir()).expanduser().absolute() / config.fingerprint()[:20]
        path = folder / f"{key}{_SUFFIX}"
        found = read_surfaces(path)
        if not found:
            found = find_surfaces(frames, seen_views(frames, cameras, sight.look, side_for(frames, config)), config)
            write_surfaces(path, found)
        sight.state.keep(found)
    return found


def surface_features(
    sight: Sight,
    found: Sequence[Surfaces],
    config: SurfacesConfig,
    views: tuple[Sequence[Frame], Cameras] | None,
    sizes: Sequence[tuple[int, int]],
    teacher: PixelFeatures | None = None,
) -> PaletteStore:
    """Return the features of images that show these surfaces.

    Args:
        sight: shows views that were not looked at yet.
        found: in the training views.
        config: the teacher's.
        views: images and cameras; none: the training views, as they were looked at.
        sizes: (height, width) in pixels of the images.
        teacher: features of the training images to be pooled over segments, instead of the segments' own.
    """
    if views is None:
        numbers = [surfaces.grids for surfaces in found]
    else:
        seen = seen_views(*views, sight.look, int(found[0].shapes.max()))
        numbers = [numbers_of(seen, surfaces) for surfaces in found]
    tables = feature_tables(found, config) if teacher is None else pooled_tables(found, teacher)
    counts = torch.tensor([len(table) for table in tables])
    first = counts.cumsum(0) - counts
    joined = [torch.stack(grids, dim=-1).long() for grids in zip(*numbers, strict=True)]
    return PaletteStore([torch.where(grid < 0, -1, grid + first) for grid in joined], torch.cat(tables), sizes)


def _key(frames: Sequence[Frame], cameras: Cameras, weights: Sequence[Tensor]) -> str:
    photos = [(digest_of_file(frame.path), frame.size) for frame in frames]
    facts = [cameras.camera_to_worlds, cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.camera_type]
    facts += [] if cameras.distortion_params is None else [cameras.distortion_params]
    parts = [digest(map(tensor_bytes, tensors)) for tensors in (facts, weights)]
    return digest_of_text(json.dumps([photos, *parts]))[:32]


def write_surfaces(path: Path, found: Sequence[Surfaces]) -> None:
    """Write what was found, atomically."""
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in _named(found).items()}, temporary)


def read_surfaces(path: Path) -> tuple[Surfaces, ...]:
    """Return what was written; nothing where the file is missing, damaged or of another layout."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _unnamed(load_file(path))
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        return ()
