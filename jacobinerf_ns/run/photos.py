"""The photos of a run's capture, each with the camera that renders it, its name and its original size."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nerfstudio.cameras.cameras import Cameras

from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.errors import UserError

Split = Literal["train", "test", "all"]

_RECORDED = (
    *("rgb", "depth", "semantic_class", "semantic_instance"),
    *("color", "pose", "intrinsic", "label", "label-filt", "instance", "instance-filt"),
)
"""Folders of originals in a sequence of Replica and a scene of ScanNet, beside that of the photos."""


@dataclass(frozen=True)
class Photo:
    """A photo of the capture."""

    name: str
    """Relative to the capture's folder, as its transforms.json lists it."""
    path: Path
    """The original; where only smaller copies are kept, this file does not exist."""
    trained: Path
    """The image that the run trains on or is tested with: the original, or a smaller copy."""
    size: tuple[int, int]
    """(height, width) in pixels of the original."""
    camera: Cameras
    """One camera, of the resolution asked for."""
    truth: tuple[Path, ...]
    """Ground-truth label maps, where the capture has them."""


def list_photos(data: FeatureDataManager, split: Split, full_resolution: bool = False) -> list[Photo]:
    """List the photos of a split, in the capture's order, each once; `all` is the training photos and then the others.

    Args:
        data: of an opened run.
        split: which photos.
        full_resolution: cameras of the originals, instead of those that the run trains with.

    Raises:
        UserError: there is no such split.
    """
    if split not in get_args(Split):
        raise UserError(f"no split {split!r}: expected one of {', '.join(map(repr, get_args(Split)))}")
    datasets = {"train": data.train_dataset, "test": data.eval_dataset}
    chosen = ["train", "test"] if split == "all" else [split]
    folder = _capture_folder(data)
    photos: dict[str, Photo] = {}
    for part in chosen:
        dataset = datasets[part]
        listed = data.originals("train" if part == "train" else data.test_split)
        assert len(listed.image_filenames) == len(dataset.image_filenames), "the dataparser lists other photos now"
        cameras = listed.cameras if full_resolution else dataset.cameras
        for index, path in enumerate(listed.image_filenames):
            photo = Photo(
                name=_relative(path, folder),
                path=path,
                trained=dataset.image_filenames[index],
                size=(int(listed.cameras.height[index]), int(listed.cameras.width[index])),
                camera=cameras[index : index + 1],
                truth=tuple(
                    listed.metadata[key][index]
                    for key in ("semantics_filenames", "instances_filenames")
                    if listed.metadata.get(key)
                ),
            )
            photos.setdefault(photo.name, photo)
    return list(photos.values())


def check_capture_is_safe(folder: Path, paths: Sequence[Path], photos: Sequence[Photo]) -> None:
    """Keep files of a capture from being overwritten, even on request.

    Args:
        folder: where results are written to.
        paths: of all files that may be written.
        photos: of the run's capture.

    Raises:
        UserError: the output folder is a capture, or a file of it is a photo or ground truth of the run's capture.
    """
    if (folder / "transforms.json").exists():
        raise UserError(f"{folder} is a capture, with its own images and labels: choose another --output-dir")
    roots = {photo.path.parent.parent.resolve() for photo in photos}
    originals = {photo.path.parent.resolve() for photo in photos} | {
        root / name for root in roots for name in _RECORDED
    }
    if not originals.isdisjoint((folder.resolve(), *folder.resolve().parents)):
        raise UserError(f"{folder} is a folder of the capture's own files: choose another --output-dir")
    own = {path.resolve() for photo in photos for path in (photo.path, photo.trained, *photo.truth)}
    for path in paths:
        if path.resolve() in own:
            raise UserError(f"{path} is a file of the capture: choose another --output-dir")


def _capture_folder(data: FeatureDataManager) -> Path:
    path = data.get_datapath().absolute()
    return path if path.is_dir() else path.parent


def _relative(path: Path, folder: Path) -> str:
    name = Path(os.path.relpath(path.absolute(), folder)).as_posix()
    return path.name if name.startswith("../") else name
