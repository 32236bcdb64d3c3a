"""Point clouds and meshes of parts: cleaned, given normals, meshed (by Open3D), and written as PLY.

Open3D is loaded by the functions that need it: it takes seconds, and fails where a system library is missing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from plyfile import PlyData, PlyElement
from scipy.spatial import KDTree

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import writing

NEIGHBOURS = 20
"""Points that a point's normal, and whether it is an outlier, are told by."""
OUTLIER_SPACINGS = 4.0
"""A point is an outlier if its mean distance to its neighbours is more than this many times the median point's. (Open3D
counts standard deviations, which the strays themselves make large.)"""
POISSON_DEPTH = 9
"""Depth of the octree that a mesh is solved on (nerfstudio's)."""
POISSON_THREADS = 1
"""With more, Open3D's solver freezes or crashes now and then (Open3D issue 6828), and is no faster on a part."""
MIN_MESH_POINTS = 200
"""Fewest points that a mesh is made of."""
TRIM = 3.0
"""Mesh farther from the cloud than this many point spacings is cut off: Poisson closes what was never seen."""
MIN_PIECE = 0.01
"""Loose pieces of a mesh that have a smaller share than this of the largest piece's triangles are cut off."""
SPACING_NEIGHBOUR = 8
COLOUR_NEIGHBOURS = 4


class Cloud(NamedTuple):
    """Coloured points with normals."""

    positions: Float[np.ndarray, "points 3"]
    colours: UInt8[np.ndarray, "points 3"]
    normals: Float[np.ndarray, "points 3"]
    """Unit length, towards the camera that saw the point."""
    labels: Int[np.ndarray, "points"]
    """Ids of labels."""


class Mesh(NamedTuple):
    """Coloured triangles."""

    vertices: Float[np.ndarray, "vertices 3"]
    triangles: Int[np.ndarray, "triangles 3"]
    colours: UInt8[np.ndarray, "vertices 3"]


def load_open3d() -> ModuleType:
    """Import Open3D.

    Raises:
        UserError: it, or a system library of its, is missing.
    """
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise UserError(
            f"Open3D cannot be loaded ({error}): pip install open3d; on Debian and Ubuntu also apt-get install "
            "libusb-1.0-0"
        ) from error
    return open3d


def inliers(positions: Float[np.ndarray, "points 3"]) -> Bool[np.ndarray, "points"]:
    """Return points that are about as close to their neighbours as others are; strays between surfaces are not."""
    if len(positions) <= NEIGHBOURS:
        return np.ones(len(positions), dtype=bool)
    distances = KDTree(positions).query(positions, k=NEIGHBOURS + 1)[0][:, 1:].mean(-1)
    return distances <= OUTLIER_SPACINGS * np.median(distances)


def estimate_normals(
    positions: Float[np.ndarray, "points 3"], directions: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, "points 3"]:
    """Return unit normals of the planes through points' neighbours, turned against the rays that saw the points."""
    cloud = _plain_cloud(positions)
    cloud.estimate_normals(load_open3d().geometry.KDTreeSearchParamKNN(NEIGHBOURS))
    normals = np.asarray(cloud.normals)
    return np.where((normals * directions).sum(-1, keepdims=True) > 0, -normals, normals)


def reconstruct(cloud: Cloud, name: str) -> Mesh:
    """Return the surface through a cloud by Poisson reconstruction, without crumbs and what lies far from every point.

    Args:
        cloud: one label's points.
        name: of the label, for messages.

    Raises:
        UserError: too few points, or no surface.
    """
    if len(cloud.positions) < MIN_MESH_POINTS:
        raise UserError(
            f"{len(cloud.positions)} points of label {name!r} are too few for a mesh, expected {MIN_MESH_POINTS} or "
            "more: raise --num-points, or leave --mesh out"
        )
    open3d = load_open3d()
    plain = _plain_cloud(cloud.positions)
    plain.normals = open3d.utility.Vector3dVector(cloud.normals.astype(np.float64))
    mesh, _ = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        plain, depth=POISSON_DEPTH, n_threads=POISSON_THREADS
    )
    tree = KDTree(cloud.positions)
    distances, nearest = map(np.asarray, tree.query(np.asarray(mesh.vertices), k=COLOUR_NEIGHBOURS))
    spacing = np.median(tree.query(cloud.positions, k=SPACING_NEIGHBOUR)[0][:, -1])
    near = distances[:, 0] <= TRIM * spacing
    mesh.remove_vertices_by_mask(~near)
    if not len(mesh.triangles):
        raise UserError(f"{len(cloud.positions)} points of label {name!r} make no surface: leave --mesh out")
    pieces, sizes, _ = mesh.cluster_connected_triangles()
    large = np.asarray(sizes) >= MIN_PIECE * np.max(sizes)
    kept, triangles = np.unique(np.asarray(mesh.triangles)[large[np.asarray(pieces)]], return_inverse=True)
    colours = cloud.colours[nearest[near][kept]].mean(1).round().astype(np.uint8)
    return Mesh(np.asarray(mesh.vertices)[kept], triangles.reshape(-1, 3), colours)


def write_cloud(path: Path, cloud: Cloud, overwrite: bool = False) -> None:
    """Write a PLY: x y z (double), nx ny nz (float), red green blue (uchar), label (int).

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    fields = {
        **_columns("xyz", "f8", cloud.positions),
        **_columns(("nx", "ny", "nz"), "f4", cloud.normals),
        **_columns(("red", "green", "blue"), "u1", cloud.colours),
        "label": ("i4", cloud.labels),  # 16 bits would do, but Open3D skips them
    }
    _write_ply(path, overwrite, vertex=fields)


def write_mesh(path: Path, mesh: Mesh, overwrite: bool = False) -> None:
    """Write a PLY: x y z (double), red green blue (uchar), and triangles.

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    vertices = {
        **_columns("xyz", "f8", mesh.vertices),
        **_columns(("red", "green", "blue"), "u1", mesh.colours),
    }
    _write_ply(path, overwrite, vertex=vertices, face={"vertex_indices": ("3i4", mesh.triangles)})


def _columns(names: Sequence[str], kind: str, values: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    return {name: (kind, values[:, column]) for column, name in enumerate(names)}


def _write_ply(path: Path, overwrite: bool, **elements: Mapping[str, tuple[str, np.ndarray]]) -> None:
    """Write by plyfile: Open3D's writer reports success on a full disk."""
    described = []
    for element, fields in elements.items():
        (_, first), *_ = fields.values()
        rows = np.empty(first.shape[0], dtype=[(name, kind) for name, (kind, _) in fields.items()])
        for name, (_, values) in fields.items():
            rows[name] = values
        described.append(PlyElement.describe(rows, element))
    with writing(path, overwrite) as temporary:
        PlyData(described, byte_order="<").write(str(temporary))


def _plain_cloud(positions: Float[np.ndarray, "points 3"]):
    open3d = load_open3d()
    return open3d.geometry.PointCloud(open3d.utility.Vector3dVector(positions.astype(np.float64)))
