"""Teacher `surfaces`: the parts and wholes into which the field's own geometry comes apart. No weights, no labels.

It looks at a field that has learnt the scene: at the depth of its training views. So it runs once, when shaping begins,
and what it found is kept in the run's checkpoints.

A pixel's feature tells which segments it is in, in many segmentations from parts to wholes, how these look and how
they lie:
    f = [√(1 − s − t) e, √s h, √t l],   e ∝ e_1 + … + e_L
with a random unit vector e_l for each segment of segmentation l, the unit mean h of handcrafted features over a part,
and a unit vector l of how a segment between part and whole lies: which way it faces, how low and how high it reaches
and how large it is (`core.surfaces`). Random vectors are nearly at right angles: the cosine of e for two pixels is the
share of segmentations that have them in one segment, 1 within a part, less from part to whole. What e tells nothing of,
like the walls that nobody clicked, is told by how it looks and lies. The scene is taken apart several times
(`core.partition.partitions`); f is the mean of all, with e lengthened so that the shares stay what they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from jacobinerf_ns.core.agreement import SeenView
from jacobinerf_ns.core.partition import Partition, PartitionConfig, leaves_of, partitions
from jacobinerf_ns.core.segments import MergeTree
from jacobinerf_ns.core.surfaces import lies
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame, fingerprint_of, load_rgb, sample
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.store import PixelFeatures
from jacobinerf_ns.progress import track

_VERSION = 10  # Part of the fingerprint: raise it whenever other segments or features come out.
LEAST_SIDE = 8
"""Pixels along the longer side without which nothing is to be seen."""
POOLED_LEVEL = 1
"""Level over whose segments looks and other teachers' features are pooled: parts, since a whole may be two things."""
LYING_LEVEL = 2
"""Level over whose segments it is told how they lie: between parts and wholes."""
OPAQUE = 0.5
"""Opacity from which on a ray meets a surface."""

Look = Callable[[RayBundle], tuple[Float[Tensor, "rays"], Float[Tensor, "rays"]]]
"""What a field shows of rays: distances along them, and opacities (0..1)."""
NumberedRows = list[Int[Tensor, "rows cols"]]


@dataclass
class SurfacesConfig(PartitionConfig):
    """Parts and wholes of the field's own geometry (no download)."""

    side: int = 160
    """Pixels along the longer side at which views are looked at, at most."""
    rays: int = 1_000_000
    """Rays of all training views together, at most: of many views each is looked at more coarsely. A million take
    about as long as training on a third of as many."""
    dimensions: int = 256
    """Dimensions of the random vectors of segments: cosines are right to about one over their root."""
    look_share: float = 0.05
    """Share (0..1) of how segments look in the cosine of two pixels."""
    lie_share: float = 0.6
    """Share (0..1) of which way segments face (up, down, aside), how low and how high they reach and how large they
    are; up is the third axis of the capture, as nerfstudio turns it. What looks and lies leave is which segments two
    pixels are in."""
    seed: int = 0
    """Seed of the random vectors."""

    def setup(self, device: torch.device | str = "cpu") -> NoReturn:
        """Refuse: this teacher looks at a field, and who has one does not ask here.

        Raises:
            UserError: always.
        """
        raise UserError(
            "the surfaces teacher looks at a trained field, and there is none here: train with it (ns-train "
            "jacobinerf-lite --data CAPTURE surfaces), or give --load-config the config.yml of a trained run"
        )

    def fingerprint(self) -> str:
        """Return the hash of the settings and of the version."""
        return fingerprint_of(f"surfaces-{_VERSION}", self)

    def check(self) -> None:
        """Look at the settings before a field is trained.

        Raises:
            UserError: one is out of range.
        """
        rising = all(low < high for low, high in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising or self.levels[0] < 0:
            raise UserError(f"surfaces: levels {self.levels} given, expected heights that rise from at least 0")
        if (
            self.side < LEAST_SIDE
            or self.rays < 1
            or self.dimensions < 1
            or self.cell <= 0
            or min(self.look_share, self.lie_share) < 0
            or self.look_share + self.lie_share > 1
        ):
            raise UserError(
                f"surfaces: side {self.side}, rays {self.rays}, dimensions {self.dimensions}, cell {self.cell:g}, "
                f"look share {self.look_share:g} and lie share {self.lie_share:g} given, expected at least "
                f"{LEAST_SIDE} pixels, a ray, a dimension, a cell above 0, shares of at least 0 and together at most 1"
            )
        if self.trees < 1 or not 0 < self.view_share <= 1 or not 0 < self.plane_share <= 1:
            raise UserError(
                f"surfaces: trees {self.trees}, view share {self.view_share:g} and plane share {self.plane_share:g} "
                "given, expected at least one tree and shares above 0, at most 1"
            )
        if not 0 <= self.body_share <= 1 or min(self.bend_weight, self.jump_weight, self.look_weight) < 0:
            raise UserError(
                f"surfaces: body share {self.body_share:g}, bend weight {self.bend_weight:g}, jump weight "
                f"{self.jump_weight:g} and look weight {self.look_weight:g} given, expected a share of 0 to 1 and "
                "weights of at least 0"
            )


class Surfaces(NamedTuple):
    """What the teacher found when it took a scene apart once, as tensors that go into checkpoints and caches."""

    points: Float[Tensor, "points 3"]
    leaves: Int[Tensor, "points"]
    levels: Int[Tensor, "levels segments"]
    cell: Float[Tensor, ""]
    looks: Float[Tensor, "segments dims"]
    """Mean feature of each leaf: handcrafted, or that of the teacher that is pooled."""
    shapes: Int[Tensor, "images 2"]
    """(rows, cols) of the grid that each training image was looked at."""
    numbers: Int[Tensor, "cells"]
    """Leaf of each cell of these grids, one after the other."""
    merges: Int[Tensor, "merges 2"]
    """Which leaves merge, in order; none in runs of before this was kept."""
    heights: Float[Tensor, "merges"]
    """At which heights they do."""
    facing: Float[Tensor, "segments 3"]
    """Which way each leaf faces (`core.surfaces`); zero in runs of before this was kept."""

    @property
    def partition(self) -> Partition:
        """The scene, taken apart."""
        points, leaves, levels = (part.cpu().numpy() for part in (self.points, self.leaves, self.levels))
        first, second = self.merges.cpu().long().numpy().T
        tree = MergeTree(levels.shape[1], first, second, self.heights.cpu().double().numpy())
        facing = self.facing.cpu().double().numpy()
        return Partition(points, leaves.astype(np.int64), levels.astype(np.int64), float(self.cell), tree, facing)

    @property
    def grids(self) -> NumberedRows:
        """The leaf of each cell of the training images."""
        sizes = self.shapes.prod(dim=1).tolist()
        parts = self.numbers.cpu().long().split(sizes)
        return [part.view(*shape) for part, shape in zip(parts, self.shapes.tolist(), strict=True)]


def seen_views(
    frames: Sequence[Frame], cameras: Cameras, look: Look, side: int, title: str = "Looking at surfaces"
) -> list[SeenView]:
    """Return what a field shows of images, at grids of at most `side` pixels along the longer side."""
    return [_seen(frame, cameras, look, side) for frame in track(frames, title)]


def side_for(frames: Sequence[Frame], config: SurfacesConfig) -> int:
    """Return how many pixels along the longer side images are looked at, all of them within the rays that are given."""
    pixels = sum(frame.size[0] * frame.size[1] * min(1.0, config.side / max(frame.size)) ** 2 for frame in frames)
    return max(LEAST_SIDE, int(config.side * min(1.0, config.rays / pixels) ** 0.5))


def _seen(frame: Frame, cameras: Cameras, look: Look, side: int) -> SeenView:
    from skimage.color import rgb2lab

    height, width = frame.size
    share = min(1.0, side / max(frame.size))
    rows, cols = max(1, round(height * share)), max(1, round(width * share))
    y, x = (torch.arange(rows) + 0.5) * height / rows, (torch.arange(cols) + 0.5) * width / cols
    coords = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).view(-1, 2).to(cameras.device)
    index = torch.full((len(coords), 1), frame.index, device=cameras.device)
    rays = cameras.generate_rays(camera_indices=index, coords=coords)
    distances, opacities = look(rays)
    distances = distances.cpu().double().numpy().reshape(rows, cols)
    known = (opacities.cpu().numpy().reshape(rows, cols) >= OPAQUE) & np.isfinite(distances) & (distances > 0)
    return SeenView(
        origin=rays.origins[0].cpu().double().numpy(),
        directions=rays.directions.cpu().double().numpy().reshape(rows, cols, 3),
        distances=distances,
        known=known,
        colours=rgb2lab(np.asarray(load_rgb(frame.path, (rows, cols)))),
    )


def find_surfaces(frames: Sequence[Frame], views: Sequence[SeenView], config: PartitionConfig) -> tuple[Surfaces, ...]:
    """Take the scene that training views see apart, several times, and describe how its segments look.

    Raises:
        UserError: there are no surfaces to be seen.
    """
    described = HandcraftedConfig(cell=2).setup()
    features: list[Float[Tensor, "cells dim"]] = []
    for frame, view in zip(frames, views, strict=True):
        size = (view.known.shape[0], view.known.shape[1])
        features.append(sample(described.extract(replace(frame, size=size)), _centres(size)))
    try:
        parted = list(track(partitions(views, config), "Taking the scene apart", total=config.trees))
    except ValueError as error:
        raise UserError(
            f"the surfaces teacher finds no surfaces ({error}): train longer before shaping begins "
            "(--pipeline.model.shaping-start-step), or choose another teacher"
        ) from error
    return tuple(_described(found, [torch.from_numpy(grid) for grid in grids], features) for found, grids in parted)


def _described(found: Partition, numbers: NumberedRows, features: Sequence[Float[Tensor, "cells dim"]]) -> Surfaces:
    count = found.levels.shape[1]
    small = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32  # every checkpoint carries them
    return Surfaces(
        points=torch.from_numpy(found.points),
        leaves=torch.from_numpy(found.leaves).int(),
        levels=torch.from_numpy(found.levels).int(),
        cell=torch.tensor(found.cell),
        looks=pooled(numbers, features, count),
        shapes=torch.tensor([grid.shape for grid in numbers]),
        numbers=torch.cat([grid.flatten() for grid in numbers]).to(small),
        merges=torch.from_numpy(np.stack([found.tree.first, found.tree.second], axis=1)).int(),
        heights=torch.from_numpy(found.tree.height).float(),
        facing=torch.from_numpy(found.facing).float(),
    )


def _centres(shape: tuple[int, ...]) -> Float[Tensor, "cells 2"]:
    rows, cols = ((torch.arange(side) + 0.5) / side for side in shape)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1).view(-1, 2)


def pooled(
    numbers: NumberedRows, features: Sequence[Float[Tensor, "cells dim"]], count: int
) -> Float[Tensor, "segments dim"]:
    """Return the mean feature of each leaf over all images that show it."""
    total, shown = torch.zeros(count, features[0].shape[1]), torch.zeros(count)
    for grid, values in zip(numbers, features, strict=True):
        known = grid.flatten() >= 0
        leaf = grid.flatten()[known].long()
        total.index_add_(0, leaf, values[known].float())
        shown.index_add_(0, leaf, torch.ones(len(leaf)))
    return total / shown.clamp_min(1)[:, None]


def feature_tables(found: Sequence[Surfaces], config: SurfacesConfig) -> list[Float[Tensor, "segments dim"]]:
    """Return the features of each tree's leaves: what a pixel's leaves have is averaged, and is a unit vector then.

    Each tree has random vectors of its own, and the mean of n such vectors is shorter by √n. So they are made longer by
    as much: else which segments a pixel is in would count less, the more trees there are.
    """
    return [_feature_table(surfaces, config, tree, len(found)) for tree, surfaces in enumerate(found)]


def _feature_table(surfaces: Surfaces, config: SurfacesConfig, tree: int, trees: int) -> Float[Tensor, "segments dim"]:
    levels = surfaces.levels.cpu().long()
    together = torch.zeros(levels.shape[1], config.dimensions)
    for level, segment in enumerate(levels):
        rng = np.random.default_rng([config.seed, tree, level])
        vectors = torch.from_numpy(rng.normal(size=(int(segment.max()) + 1, config.dimensions)))
        together += F.normalize(vectors.float(), dim=-1)[segment]
    look = F.normalize(_over(_parts(levels), surfaces.looks.cpu(), _sizes(surfaces)), dim=-1)
    rest = 1 - config.look_share - config.lie_share
    parts = (rest, together), (config.look_share, look), (config.lie_share, _lie(surfaces))
    # Normalised as a whole: a run of before has no lies.
    table = F.normalize(torch.cat([share**0.5 * F.normalize(part, dim=-1) for share, part in parts], dim=-1), dim=-1)
    table[:, : config.dimensions] *= trees**0.5
    return table


def _parts(levels: Int[Tensor, "levels segments"]) -> Int[Tensor, "segments"]:
    return levels[min(POOLED_LEVEL, len(levels) - 1)]


def _lie(surfaces: Surfaces) -> Float[Tensor, "segments dims"]:
    """Return how the segment that each leaf is in lies; zero where it is not known which way leaves face."""
    found = surfaces.partition
    segment = found.levels[min(LYING_LEVEL, len(found.levels) - 1)]
    told = lies(found.points, segment[found.leaves], found.facing[found.leaves])[segment]
    return torch.from_numpy(told).float() * bool(found.facing.any())


def pooled_tables(found: Sequence[Surfaces], teacher: PixelFeatures) -> list[Float[Tensor, "segments dim"]]:
    """Return a teacher's features of the training images, as means over segments of a low level, for each leaf of each
    tree. The images' features are read once: all trees see the same cells.
    """
    features = []
    for image, (grid, size) in enumerate(zip(found[0].grids, teacher.sizes, strict=True)):
        places = (_centres(grid.shape) * torch.tensor(size)).long()
        pixels = torch.cat([torch.full((len(places), 1), image), places], dim=-1)
        features.append(teacher.sample(pixels))
    return [_over_parts(surfaces, features) for surfaces in found]


def _over_parts(surfaces: Surfaces, features: Sequence[Float[Tensor, "cells dim"]]) -> Float[Tensor, "segments dim"]:
    levels = surfaces.levels.cpu().long()
    return _over(_parts(levels), pooled(surfaces.grids, features, levels.shape[1]), _sizes(surfaces))


def _sizes(surfaces: Surfaces) -> Float[Tensor, "segments"]:
    """Return in how many cells of the training images each leaf is seen."""
    numbers = surfaces.numbers.cpu().long()
    return torch.bincount(numbers[numbers >= 0], minlength=surfaces.levels.shape[1]).float()


def _over(
    segment: Int[Tensor, "leaves"], values: Float[Tensor, "leaves dim"], weight: Float[Tensor, "leaves"]
) -> Float[Tensor, "leaves dim"]:
    """Return, for each leaf, the weighted mean over the leaves of its segment."""
    count = int(segment.max()) + 1
    total = values.new_zeros(count, values.shape[1]).index_add_(0, segment, values * weight[:, None])
    return (total / weight.new_zeros(count).index_add_(0, segment, weight).clamp_min(1)[:, None])[segment]


def numbers_of(views: Sequence[SeenView], surfaces: Surfaces) -> NumberedRows:
    """Return the leaf of each pixel of other views of the same scene."""
    found = surfaces.partition
    return [torch.from_numpy(leaves_of(view, found)) for view in views]
