"""DFF's queries: where in a view is something like this pixel, this box, or this picture?

A query is one vector in the teacher's space; a view answers with the cosine of its distilled features to it. The places
in the training photos that answer best can begin a label, which edits take out of the scene, alone, or paint.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from torch import Tensor

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.formats.base import label_file_names
from jacobinerf_ns.annotations.rasterise import spread, to_camera
from jacobinerf_ns.annotations.rays import rays_through
from jacobinerf_ns.annotations.schema import Annotations, Click, Edit, Place, Seed
from jacobinerf_ns.core.jacobian import NORM_EPS, cosine_response
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Extractor, Frame, load_rgb, pixel_positions, sample
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.names import find_image
from jacobinerf_ns.files.pictures import heat_map
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.tracer import trace_all
from jacobinerf_ns.labels.views import render_view
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.progress import track
from jacobinerf_ns.run.photos import Photo, check_capture_is_safe
from jacobinerf_ns.tasks.feature_field.field import FeatureField

HEAT_MAPS, MASKS, EDITED = "heat_maps", "masks", "edited"
"""Folders of the answers."""
SOME_LABEL = 1
"""Label of seeds that have none yet."""
MAX_PIXELS = 1024
"""Pixels of a box that a query is made of; of more, some that are spread evenly over it."""

PixelBox = tuple[int, int, int, int]
"""x0 y0 x1 y1 in pixels (column, row): two opposite corners, both inside."""


def box_pixels(box: PixelBox, size: tuple[int, int], name: str) -> Int[np.ndarray, "pixels 2"]:
    """Return at most `MAX_PIXELS` (x, y) pixels of a box in an image of `size` (height, width).

    Raises:
        UserError: a corner lies outside of the image, which `name` names.
    """
    height, width = size
    for x, y in (box[:2], box[2:]):
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"pixel ({x}, {y}) is outside of {name}, which is {width}x{height} pixels (width x height): "
                f"expected x in 0..{width - 1} and y in 0..{height - 1}"
            )
    (left, right), (top, bottom) = sorted(box[::2]), sorted(box[1::2])
    columns, rows = np.meshgrid(np.arange(left, right + 1), np.arange(top, bottom + 1))
    return spread(np.stack([columns.ravel(), rows.ravel()], axis=1), MAX_PIXELS)


def query_of_photo(
    model: JacobiNeRFModel, feature_field: FeatureField, photos: Sequence[Photo], name: str, box: PixelBox
) -> Float[Tensor, "features"]:
    """Return the query by a box of a photo, in pixels of the original.

    Raises:
        UserError: an unknown photo, a box outside of it, or one that sees nothing.
    """
    photo = photos[find_image(name, [photo.path for photo in photos])]
    (height, width), camera = photo.size, photo.camera
    pixels = box_pixels(box, photo.size, photo.name)
    mapped = to_camera(pixels, (width, height), (int(camera.width), int(camera.height)))
    return query_of_pixels(model, feature_field, camera, np.unique(mapped, axis=0))


@torch.no_grad()
def query_of_pixels(
    model: JacobiNeRFModel, feature_field: FeatureField, camera: Cameras, pixels: Int[np.ndarray, "pixels 2"]
) -> Float[Tensor, "features"]:
    """Return the mean direction of the distilled features at (x, y) pixels of a camera; the model is in eval mode.

    Raises:
        UserError: the pixels see nothing.
    """
    rows_columns = torch.from_numpy(pixels[:, ::-1].copy())
    rays = rays_through(camera, torch.cat([torch.zeros_like(rows_columns[:, :1]), rows_columns], dim=-1))
    return _mean_direction(
        trace_all(model, rays, feature_field.rendered), "the pixels that were named see nothing: choose others"
    )


def query_of_picture(extractor: Extractor, path: Path, box: PixelBox | None = None) -> Float[Tensor, "features"]:
    """Return the mean direction of the teacher's features of any image file, or of a box in it, on the CPU.

    Raises:
        UserError: a file that is no image or that the teacher cannot serve, or a box outside of it.
    """
    width, height = load_rgb(path).size
    pixels = box_pixels(box or (0, 0, width - 1, height - 1), (height, width), path.name)
    frame = Frame(0, path, (height, width))
    extractor.check([frame])
    where = pixel_positions(torch.from_numpy(pixels[:, ::-1].copy()), torch.tensor([[height, width]]))
    features = sample(extractor.extract(frame), where.float())
    return _mean_direction(features, f"the teacher sees nothing in {path}: choose another picture or box")


@torch.no_grad()
def view_similarity(
    model: JacobiNeRFModel, feature_field: FeatureField, camera: Cameras, query: Float[Tensor, "features"]
) -> Float[Tensor, "height width"]:
    """Return the cosine, −1..1, of a view's distilled features to a query, on the CPU; the model is in eval mode."""
    rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
    direction = query.to(model.device)[None]
    found = trace_all(model, rays.flatten(), lambda traced: cosine_response(feature_field.rendered(traced), direction))
    return found.view(rays.origins.shape[:2]).cpu()


class AnswerFiles(NamedTuple):
    """The files that say where in a photo something like the query is, at the photo's original size."""

    photo: Photo
    heat_map: Path
    """Cosine to the query, or relevancy of the text, as a Turbo heat map: blue 0 or less, red 1."""
    mask: Path
    """White where it reaches the threshold, else black."""
    edited: Path
    """The rendering without it, with it alone, or with it in another colour."""


class Found(NamedTuple):
    """What was asked for, as views answer it and as a label begins with it."""

    look: Callable[[Cameras], Float[Tensor, "height width"]]
    """How like it the pixels of a view are."""
    seeds: tuple[Seed, ...]
    """Of the label `SOME_LABEL`: places in the training photos that stand for it; none where nobody wants a label."""


def clicks_of(places: Sequence[Place]) -> tuple[Seed, ...]:
    """Return places of what was asked for as clicks.

    Raises:
        UserError: there are none.
    """
    if not places:
        raise UserError("nothing in the training photos is so like it that a label may begin there: lower --threshold")
    return tuple(Click(label=SOME_LABEL, **dict(place)) for place in places)


def with_label(annotations: Annotations, name: str, seeds: Sequence[Seed], edit: Edit | None) -> Annotations:
    """Return annotations with a label of what was asked for, which is made where it is new, and selected.

    Args:
        annotations: to change.
        name: of the label.
        seeds: added to it.
        edit: takes the place of its edit of that kind; None adds none.
    """
    if all(label.name != name.strip() for label in annotations.labels):
        annotations, _ = changes.add_label(annotations, name)
    label = changes.label_named(annotations, name).id
    for seed in seeds:
        annotations = changes.add_seed(annotations, seed.model_copy(update={"label": label}))
    if edit is not None:
        annotations = changes.set_edit(annotations, edit.model_copy(update={"label": label}))
    return changes.select(annotations, label)


@torch.no_grad()
def edited_view(
    model: JacobiNeRFModel, camera: Cameras, snapshot: LabelSnapshot
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the rendering of a camera with the edits of labels; the model is in eval mode."""
    rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
    colours = render_view(model, rays, snapshot)["edited"].clamp(0, 1)
    return (colours.cpu().numpy() * 255).round().astype(np.uint8)


def plan_answers(photos: Sequence[Photo], folder: Path, overwrite: bool, edits: bool = False) -> list[AnswerFiles]:
    """Return the files of each photo, named as the photo is; those of edits are written where `edits` says so.

    Raises:
        UserError: one is there already and not to be overwritten, belongs to the capture, or photos share a name.
    """
    names = label_file_names([photo.name for photo in photos], ".png")
    planned = [
        AnswerFiles(photo, folder / HEAT_MAPS / name, folder / MASKS / name, folder / EDITED / name)
        for photo, name in zip(photos, names, strict=True)
    ]
    paths = [path for files in planned for path in (files.heat_map, files.mask, *([files.edited] if edits else []))]
    check_capture_is_safe(folder, paths, photos)
    there = [] if overwrite else [path for path in paths if path.exists()]
    if there:
        raise UserError(f"{there[0]} is there already: choose another --output-dir, or --overwrite")
    return planned


def write_answers(
    look: Callable[[Cameras], Float[Tensor, "height width"]],
    planned: Sequence[AnswerFiles],
    threshold: float,
    edited: Callable[[Cameras], UInt8[np.ndarray, "height width 3"]] | None = None,
) -> int:
    """Write the files of every photo; return how many reach the threshold anywhere.

    Args:
        look: how like what was asked for the pixels of a view are.
        planned: the files.
        threshold: from which on a pixel is white in the mask.
        edited: renders a view with an edit; None writes no such files.

    Raises:
        UserError: a folder that cannot be written to.
    """
    found = 0
    for files in track(planned, description="Answering"):
        values = at_photo_size(look(files.photo.camera), files.photo.size)
        mask = (values >= threshold).to(torch.uint8) * 255
        found += bool(mask.any())
        picture = (heat_map(values) * 255).round().to(torch.uint8)
        _write(files.heat_map, Image.fromarray(picture.numpy()))
        _write(files.mask, Image.fromarray(mask.numpy()))
        if edited is not None:
            height, width = files.photo.size
            shown = Image.fromarray(edited(files.photo.camera))
            _write(files.edited, shown.resize((width, height), Image.Resampling.BILINEAR))
    return found


def _write(path: Path, picture: Image.Image) -> None:
    with writing(path, overwrite=True) as temporary:
        picture.save(temporary)


def at_photo_size(values: Float[Tensor, "rows columns"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Return values resampled, bilinearly between pixel centres, to a photo of `size` (height, width)."""
    if tuple(values.shape) == tuple(size):
        return values
    return F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _mean_direction(vectors: Float[Tensor, "pixels features"], nothing: str) -> Float[Tensor, "features"]:
    """Return the mean of the unit vectors, so that a strong feature has no more say.

    Raises:
        UserError: all of them are zero.
    """
    mean = F.normalize(vectors.float(), dim=-1, eps=NORM_EPS).mean(dim=0)
    if not bool(mean.norm() > NORM_EPS):
        raise UserError(nothing)
    return mean
