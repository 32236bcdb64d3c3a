"""Fewer dimensions: the projection that keeps most of what cosines between features see.

Projected features are written as a second set of files. Sampling then reads `feature_dim` numbers per patch, not all of
them, which is what costs time and page cache in every training step; the price is disk.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.features.base import FeatureGrid
from jacobinerf_ns.features.cache import Filled, fill, read_grid
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.digests import digest_of_text
from jacobinerf_ns.progress import PlainConsole

PATCH_BUDGET = 20_000
"""Patches the projection is fitted on, over all images."""


@dataclass(frozen=True)
class Projection:
    """An affine map of features: `(f - mean) @ basis`."""

    mean: Float[Tensor, " dim"]
    basis: Float[Tensor, "dim kept"]

    def apply(self, values: Float[Tensor, "rows cols dim"]) -> Float[Tensor, "rows cols kept"]:
        """Return the projected features, float32."""
        return (values.float() - self.mean) @ self.basis


def project_all(paths: Sequence[Path], feature_dim: int | None, center: bool, seed: int = 0) -> Filled:
    """Write the files of `paths` projected to `feature_dim` dimensions into a folder of their own beside them.

    The folder's name holds the choices and a hash of the members: another set of images has another projection.

    Raises:
        UserError: `feature_dim` is not between 1 and the dimension of the features.
    """
    keys = [path.stem for path in paths]
    members = digest_of_text(json.dumps([sorted(set(keys)), seed]))[:20]
    name = f"pca-{feature_dim or 'all'}{'-centred' if center else ''}-{members}"
    folder = paths[0].parent / name
    file = folder / "projection.pt"
    projection = _read(file) or _fit_and_write(file, paths, feature_dim, center, seed)

    def make(i: int) -> tuple[FeatureGrid, Path]:
        grid = read_grid(paths[i])
        return FeatureGrid(projection.apply(grid.values), grid.origin, grid.step), paths[i]

    return fill(folder, keys, make, "Projecting features")


def fit(patches: Float[Tensor, "patches dim"], feature_dim: int | None, center: bool) -> tuple[Projection, float]:
    """Return the principal directions of the patches, and the share of their energy that is kept (0..1).

    Not centred by default: the directions are those of the second moment about zero, which of all projections keeps the
    scalar products between features best, and with them the cosines that choose pairs. Centred, cosines are taken about
    the mean feature: what all patches have in common no longer counts as likeness. Without `feature_dim` nothing is
    projected, and only the mean is taken off.
    """
    dim = patches.shape[1]
    if feature_dim is not None and not 1 <= feature_dim <= dim:
        raise UserError(f"feature dim {feature_dim} given, the features have {dim}: give 1 to {dim}, or leave it out")
    data = patches.double()
    mean = data.mean(0) if center else torch.zeros(dim, dtype=torch.float64)
    if feature_dim is None:
        return Projection(mean.float(), torch.eye(dim)), 1.0
    energies, directions = torch.linalg.eigh((data - mean).T @ (data - mean))
    energies, basis = energies.flip(0).clamp_min(0), directions.flip(1)[:, :feature_dim]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    kept = float(energies[:feature_dim].sum() / energies.sum().clamp_min(torch.finfo(torch.float64).tiny))
    return Projection(mean.float(), (basis * largest.sign()).float()), kept


def _fit_and_write(path: Path, members: Sequence[Path], feature_dim: int | None, center: bool, seed: int) -> Projection:
    projection, kept = fit(_sample_patches(sorted(set(members)), seed), feature_dim, center)
    if feature_dim is not None:
        dim = len(projection.basis)
        PlainConsole().print(
            f"PCA from {dim} to {feature_dim} dimensions keeps {kept:.1%} of the energy", soft_wrap=True
        )
    with writing(path, overwrite=True) as temporary:
        try:
            torch.save({"mean": projection.mean, "basis": projection.basis}, temporary)
        except RuntimeError as error:  # So torch calls a disk that is full.
            raise OSError(reason(error)) from error
    return projection


def _read(path: Path) -> Projection | None:
    if not path.exists():
        return None
    try:
        return Projection(**torch.load(path, weights_only=True))
    except Exception:  # torch.load fails in many ways on a damaged file, and fitting again costs little.
        return None


def _sample_patches(paths: Sequence[Path], seed: int) -> Float[Tensor, "patches dim"]:
    rng = np.random.default_rng(seed)
    share = -(-PATCH_BUDGET // len(paths))
    picked = []
    for path in paths:
        patches = read_grid(path).values.flatten(0, 1)
        chosen = rng.choice(len(patches), size=min(share, len(patches)), replace=False)
        picked.append(patches[torch.from_numpy(chosen)].float())
    return torch.cat(picked)
