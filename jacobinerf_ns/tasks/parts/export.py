"""Takes parts out of a trained run: point clouds and meshes of chosen labels, as files."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from jacobinerf_ns.annotations.changes import grow_all, label_named, set_view
from jacobinerf_ns.annotations.frames import WorldFrame
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.annotations.settings import adjusted
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.atomic import write_json
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.run.opened import Run
from jacobinerf_ns.tasks.parts import geometry as part_geometry
from jacobinerf_ns.tasks.parts import sampling as part_sampling
from jacobinerf_ns.tasks.parts.geometry import Cloud
from jacobinerf_ns.tasks.parts.sampling import Points, Sightings
from jacobinerf_ns.tasks.settings import ExportSettings

EVERYTHING = "all"
"""Stands for every label that has seeds."""
CLOUD_NAME = "points.ply"
SUMMARY_NAME = "export.json"


def export_parts(run: Run, names: Sequence[str], output_dir: Path, settings: ExportSettings) -> dict[str, Any]:
    """Write `points.ply`, a `mesh_<name>.ply` per label and `export.json`, whose content is returned.

    A pixel belongs to a label where the viewer's `selection` says so. Where a label is too scarce for a mesh, all the
    other files are written before that is said.

    Args:
        run: a trained run with annotations.
        names: of labels; `all` is every label that has seeds, of which those that are not seen are left out.
        output_dir: folder of the files.
        settings: what is taken out, and how it is written.

    Raises:
        UserError: a label is unknown, has no seeds or is not seen; files are there already, or cannot be written.
    """
    part_geometry.load_open3d()
    snapshot = _snapshot(run, settings)
    chosen = _choose(run, snapshot, names)
    slugs = [name.removeprefix("mask_") for name in snapshot.mask_names()]
    meshes = {snapshot.labels[p].id: f"mesh_{slugs[p]}.ply" for p in chosen} if settings.mesh else {}
    _check_folder(output_dir, [CLOUD_NAME, *meshes.values(), *[SUMMARY_NAME] * settings.json], settings.overwrite)
    points = _sample(run, snapshot, chosen, settings.num_points, skip_unseen=EVERYTHING in names)
    clouds = _clouds(points, settings.remove_outliers)
    world = run.pipeline.world
    summary = {
        "run": str(run.folder),
        "step": run.step,
        "frame": settings.frame,
        "cloud": CLOUD_NAME,
        "points": sum(len(cloud.positions) for cloud in clouds.values()),
        "labels": [
            _describe(label, threshold, clouds[label.id], world)
            for label, threshold in zip(snapshot.labels, snapshot.thresholds(), strict=True)
            if label.id in clouds
        ],
    }
    problems = _write(clouds, meshes, summary, output_dir, settings, world)
    if problems:
        raise UserError(f"{'; '.join(problems)}; all else is in {output_dir}")
    return summary


def _snapshot(run: Run, settings: ExportSettings) -> LabelSnapshot:
    keeper = run.pipeline.labels
    assert keeper is not None, "open_run gives every pipeline an annotation file"
    if settings.threshold not in (None, "own") and not 0.0 <= settings.threshold <= 1.0:
        raise UserError(f"--threshold is {settings.threshold:g}, expected 0..1")
    snapshot = keeper.current(lambda annotations: _adjusted(annotations, settings))
    if snapshot is None:
        path = run.config.pipeline.annotations
        raise UserError(f"no label in {path}: click first (jacobinerf annotate, or the viewer)")
    if settings.num_points < 1:
        raise UserError(f"--num-points is {settings.num_points}, expected 1 or more")
    return snapshot


def _adjusted(annotations: Annotations, settings: ExportSettings) -> Annotations:
    propagation = adjusted(annotations.view.propagation, {"threshold": settings.threshold})
    return grow_all(set_view(annotations, propagation=propagation), settings.grow)


def _choose(run: Run, snapshot: LabelSnapshot, names: Sequence[str]) -> list[int]:
    """Return the positions of the labels of those names."""
    assert run.pipeline.labels is not None
    annotations = run.pipeline.labels.store.snapshot()[1]
    ids = [label.id for label in snapshot.labels]
    seeded = set(snapshot.prototypes.labels[snapshot.prototypes.positive].tolist())
    known = ", ".join(label.name for label in snapshot.labels)
    if not names:
        raise UserError(f"no label is named: give --label NAME (there are {known}), or --label {EVERYTHING}")
    if EVERYTHING in names:
        chosen = sorted(seeded)
    else:
        chosen = sorted({ids.index(label_named(annotations, name).id) for name in names})
    bare = [snapshot.labels[position].name for position in chosen if position not in seeded]
    if bare or not chosen:
        which = f"label {bare[0]!r} has" if bare else f"the labels {known} have"
        raise UserError(f"{which} no seeds that say where it is: click first (jacobinerf annotate, or the viewer)")
    return chosen


def _check_folder(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Say before the long work, not after it, that files are in the way or that the folder cannot be written."""
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(f"{folder / there[0]} is there already: give --overwrite, or another --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): choose another --output-dir"
        ) from error


def _sample(run: Run, snapshot: LabelSnapshot, chosen: Sequence[int], num_points: int, skip_unseen: bool) -> Points:
    model, cameras = run.pipeline.model, run.pipeline.datamanager.train_dataset.cameras
    sightings = part_sampling.find_labels(model, cameras, snapshot, chosen)
    seen = set(sightings.labels.tolist())
    unseen = [position for position in chosen if snapshot.labels[position].id not in seen]
    if unseen and not (skip_unseen and len(unseen) < len(chosen)):
        raise UserError(_not_seen(snapshot, unseen[0], sightings))
    return part_sampling.sample_points(model, cameras, snapshot, chosen, sightings, num_points)


def _not_seen(snapshot: LabelSnapshot, position: int, sightings: Sightings) -> str:
    rays, views = int(sightings.grids.prod(-1).sum()), len(sightings.grids)
    name, strongest = snapshot.labels[position].name, float(sightings.strongest[position])
    return (
        f"nothing of label {name!r} is seen in the {views} training views ({rays} rays): its strongest response is "
        f"{strongest:.2f}, expected {snapshot.thresholds()[position]:.2g} or more and more than any other label's: "
        "lower --threshold, or click on it in another view"
    )


def _clouds(points: Points, remove_outliers: bool) -> dict[int, Cloud]:
    """Return a cloud per label id, scene frame. Labels are cleaned one by one: a stray may lie within another."""
    clouds = {}
    for label in points.labels.unique().tolist():
        mine = Points(*(part[points.labels == label] for part in points))
        positions = mine.positions.double().numpy()
        kept = part_geometry.inliers(positions) if remove_outliers else np.ones(len(positions), dtype=bool)
        normals = part_geometry.estimate_normals(positions[kept], mine.directions.double().numpy()[kept])
        colours = (mine.colours * 255.0).round().clamp(0, 255).byte().numpy()
        clouds[label] = Cloud(positions[kept], colours[kept], normals, mine.labels.numpy()[kept])
    return clouds


def _describe(label: Label, threshold: float, cloud: Cloud, world: WorldFrame) -> dict[str, Any]:
    corners = _positions_in(cloud.positions, world)
    box = {"min": corners.min(0).tolist(), "max": corners.max(0).tolist()}
    return {
        "id": label.id,
        "name": label.name,
        "colour": list(label.colour),
        "threshold": threshold,
        "points": len(cloud.positions),
        "bounding_box_world": box,
    }


def _write(
    clouds: Mapping[int, Cloud],
    meshes: Mapping[int, str],
    summary: dict[str, Any],
    folder: Path,
    settings: ExportSettings,
    world: WorldFrame,
) -> list[str]:
    """Write all files, note the meshes in the summary, and return why some meshes cannot be made."""
    target = world if settings.frame == "world" else None
    whole = Cloud(*(np.concatenate(part) for part in zip(*clouds.values(), strict=True)))
    normals = whole.normals if target is None else target.directions_to_world(torch.from_numpy(whole.normals)).numpy()
    moved = whole._replace(positions=_positions_in(whole.positions, target), normals=normals)
    part_geometry.write_cloud(folder / CLOUD_NAME, moved, settings.overwrite)
    problems = []
    for entry in summary["labels"] if meshes else ():
        try:
            mesh = part_geometry.reconstruct(clouds[entry["id"]], entry["name"])
        except UserError as error:
            problems.append(str(error))
            continue
        name = meshes[entry["id"]]
        mesh = mesh._replace(vertices=_positions_in(mesh.vertices, target))
        part_geometry.write_mesh(folder / name, mesh, settings.overwrite)
        entry |= {"mesh": name, "vertices": len(mesh.vertices), "triangles": len(mesh.triangles)}
    if settings.json:
        write_json(folder / SUMMARY_NAME, summary, settings.overwrite)
    return problems


def _positions_in(positions: Float[np.ndarray, "points 3"], world: WorldFrame | None) -> Float[np.ndarray, "points 3"]:
    """Return scene points in the world, or as they are."""
    return positions if world is None else world.points_to_world(torch.from_numpy(positions)).numpy()
