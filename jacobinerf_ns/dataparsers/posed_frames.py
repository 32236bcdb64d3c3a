"""What parsers of recorded sequences share: numbered files, matrices in text, poses, nerfstudio's outputs.

A recording is one camera at many places. Its poses are camera-to-world in OpenCV's axes (x right, y down, z forward),
in metres; nerfstudio's outputs are in OpenGL's (x right, y up, z back), oriented, centred and scaled as its own parsers
do it.
"""

import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.camera_utils import auto_orient_and_center_poses
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from jacobinerf_ns.dataparsers.downscale import downscaled_copies, whole_factor
from jacobinerf_ns.dataparsers.image_checks import check_depths, check_images, check_label_maps
from jacobinerf_ns.dataparsers.options import check_scales
from jacobinerf_ns.dataparsers.transforms_file import MAX_DISTANCE
from jacobinerf_ns.errors import UserError, reason
from jacobinerf_ns.files.outside import read_text

MAX_MATRIX_BYTES = 50 << 20
"""Of a text file of numbers: 100,000 poses with all the digits there are take 40 MB."""
_RIGID = 0.01
"""Largest deviation of R Rᵀ from the identity in a pose; files carry 6 digits or more."""


@dataclass
class PosedFramesConfig(DataParserConfig):
    """Options of every recorded sequence."""

    downscale_factor: int | None = None
    """Image sizes are divided by this whole number; copies are made once in ~/.cache/jacobinerf-ns."""
    scale_factor: float = 1.0
    """Further scale of the camera positions."""
    scene_scale: float = 1.0
    """Half the side of the scene's box, in the scaled frame."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "up"
    """How the scene is turned."""
    center_method: Literal["poses", "focus", "none"] = "poses"
    """What becomes the origin."""
    auto_scale_poses: bool = True
    """Scale the camera positions to fit into a box of +/- 1."""
    depth_unit_scale_factor: float = 1e-3
    """Metres per unit of the depth maps (16-bit PNGs in millimetres)."""


@dataclass(frozen=True)
class Recording:
    """All frames of a sequence that can be used, before they are split."""

    folder: Path
    poses_source: Path
    """File or folder that the poses come from."""
    images: list[Path]
    poses: Float[np.ndarray, "frames 4 4"]
    """Camera-to-world, OpenCV axes, metres."""
    size: tuple[int, int]
    """(height, width) in pixels of every image."""
    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy in pixels; the centre of the upper left pixel is (0.5, 0.5), as in nerfstudio."""
    depths: list[Path] | None
    instances: list[Path] | None


class SemanticLabels(NamedTuple):
    """Class maps of the frames of a split."""

    paths: list[Path] | None
    classes: dict[int, str] | None
    """Names by id in the maps of `paths`."""
    mapping: dict[int, int] | None
    """Id in the maps of `paths` by id in the recording's own files."""


@dataclass
class PosedFramesParser(DataParser):
    """Reads a recording for one split; `metadata` of its outputs has the keys of `jacobinerf-data`.

    Beyond those: `class_mapping`, the id in the class maps by the id in the recording's own files.
    """

    config: PosedFramesConfig
    downscale_factor: float | None = None
    """Set from outside only: by nerfstudio, to 1, where cameras are wanted and images are not."""

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """Return the outputs of one split.

        Raises:
            UserError: the recording is missing or damaged, or has no frame for this split.
        """
        check_scales(self.config)
        inference = self.downscale_factor is not None
        factor = whole_factor(self.downscale_factor if inference else self.config.downscale_factor)
        recording = self._read_recording()
        chosen = self._choose(recording, split)
        if not inference:
            _check_files(recording, chosen)
        outputs = _outputs(recording, chosen, self.config)
        labels = self._semantic_labels(recording, chosen)
        outputs.metadata |= {
            "semantics_filenames": labels.paths,
            "instances_filenames": _pick(recording.instances, chosen),
            "classes": labels.classes,
            "class_mapping": labels.mapping,
            "original_sizes": [recording.size] * len(chosen),
        }
        if factor is not None and factor > 1:
            _downscale(outputs, recording, factor)
        return outputs

    @abstractmethod
    def _read_recording(self) -> Recording:
        """Return all usable frames.

        Raises:
            UserError: the recording cannot be used.
        """

    @abstractmethod
    def _choose(self, recording: Recording, split: str) -> list[int]:
        """Return the places of a split's frames in the recording, at least one.

        Raises:
            UserError: there is none.
        """

    @abstractmethod
    def _semantic_labels(self, recording: Recording, chosen: Sequence[int]) -> SemanticLabels:
        """Return the class maps of the chosen frames.

        Raises:
            UserError: the maps cannot be used.
        """


def numbered_files(folder: Path, prefix: str, suffixes: Sequence[str]) -> dict[int, Path]:
    """Return the files such as `rgb_12.png` of a folder by their number, in its order; other files are left alone.

    Raises:
        UserError: the folder is missing, has none of them, or one number twice.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected {prefix}N{suffixes[0]} files in it")
    pattern = re.compile(re.escape(prefix) + r"(\d+)", re.ASCII)
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.stem)
        if match is None or path.suffix.lower() not in suffixes:
            continue
        number = int(match[1])
        if number in files:
            raise UserError(f"{files[number]} and {path} have the same number: remove one of them")
        files[number] = path
    if not files:
        raise UserError(f"no file in {folder}: expected {prefix}N{suffixes[0]}, one per frame")
    return dict(sorted(files.items()))


def companions(folder: Path, prefix: str, suffixes: Sequence[str], images: Mapping[int, Path]) -> list[Path] | None:
    """Return the file of every image in another folder of the recording, or None where there is no such folder.

    Raises:
        UserError: the folder is there and lacks the file of an image.
    """
    if not folder.is_dir():
        return None
    files = numbered_files(folder, prefix, suffixes)
    for number, image in images.items():
        if number not in files:
            missing = folder / f"{prefix}{number}{suffixes[0]}"
            raise UserError(f"{missing} is missing, and {image} needs it: put it there, or take away the whole folder")
    return [files[number] for number in images]


def read_matrix(path: Path, expected: str) -> Float[np.ndarray, "rows columns"]:
    """Return the numbers of a text file, a row per line; `inf` and `nan` are numbers.

    Args:
        path: the file.
        expected: what it should hold, for the message.

    Raises:
        UserError: the file is missing, empty, or no table of numbers.
    """
    text = read_text(path, expected, MAX_MATRIX_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # An empty file is a warning to numpy, an error to us.
            table = np.loadtxt(StringIO(text), dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise UserError(f"{path} is no table of numbers ({reason(error)}): expected {expected}") from error
    if table.size == 0:
        raise UserError(f"{path} is empty: expected {expected}")
    return table


def check_rigid(pose: Float[np.ndarray, "4 4"], where: str) -> None:
    """Check that a matrix is a rotation and a translation (row-major, last row 0 0 0 1).

    Raises:
        UserError: it is none.
    """
    rotation = pose[:3, :3]
    far = np.abs(rotation @ rotation.T - np.eye(3)).max() > _RIGID or np.linalg.det(rotation) < 0
    if far or not np.allclose(pose[3], (0, 0, 0, 1), atol=_RIGID):
        raise UserError(
            f"{where} is no camera-to-world matrix: expected a rotation and a translation, row-major, "
            "with the last row 0 0 0 1"
        )
    distance = np.abs(pose[:3, 3]).max()
    if distance > MAX_DISTANCE:
        raise UserError(f"{where} is {distance:g} m from the origin, expected at most {MAX_DISTANCE:g}: correct it")


def _check_files(recording: Recording, chosen: Sequence[int]) -> None:
    check_images([recording.images[i] for i in chosen], recording.size)
    if recording.depths is not None:
        check_depths([recording.depths[i] for i in chosen])
    if recording.instances is not None:
        check_label_maps([recording.instances[i] for i in chosen], recording.size)


def _outputs(recording: Recording, chosen: Sequence[int], config: PosedFramesConfig) -> DataparserOutputs:
    """Return the cameras and images of the chosen frames.

    All frames together orient and scale, so that splits share a frame.
    """
    poses, transform, scale = _scene_poses(recording, config)
    fx, fy, cx, cy = recording.intrinsics
    height, width = recording.size
    cameras = Cameras(
        camera_to_worlds=poses[list(chosen), :3, :4],
        fx=fx,
        fy=fy,
        cx=cx,
        cy=cy,
        height=height,
        width=width,
        camera_type=CameraType.PERSPECTIVE,
    )
    half = config.scene_scale
    return DataparserOutputs(
        image_filenames=[recording.images[i] for i in chosen],
        cameras=cameras,
        scene_box=SceneBox(aabb=torch.tensor([[-half] * 3, [half] * 3], dtype=torch.float32)),
        dataparser_scale=scale,
        dataparser_transform=transform,
        metadata={
            "depth_filenames": _pick(recording.depths, chosen),
            "depth_unit_scale_factor": config.depth_unit_scale_factor,
        },
    )


def _scene_poses(
    recording: Recording, config: PosedFramesConfig
) -> tuple[Float[Tensor, "frames 3 4"], Float[Tensor, "3 4"], float]:
    """Return the poses in nerfstudio's axes and frame, the transform into it, and the scale that comes after it."""
    opengl = recording.poses.astype(np.float32) @ np.diag(np.array([1, -1, -1, 1], dtype=np.float32))
    cameras = torch.from_numpy(opengl)
    _, transform = auto_orient_and_center_poses(
        cameras, method=config.orientation_method, center_method=config.center_method
    )
    # Its own poses do not always fit its transform: where "pca" has to turn the scene over, it turns two cameras.
    poses = transform @ cameras
    scale = config.scale_factor
    if config.auto_scale_poses:
        reach = float(poses[:, :3, 3].abs().max())
        if reach == 0:
            raise UserError(
                f"all cameras of {recording.poses_source} are at one place: expected views from several, "
                "or --auto-scale-poses False"
            )
        scale /= reach
    poses[:, :3, 3] *= scale
    return poses, transform, scale


def _pick(paths: list[Path] | None, chosen: Sequence[int]) -> list[Path] | None:
    return None if paths is None else [paths[i] for i in chosen]


def _downscale(outputs: DataparserOutputs, recording: Recording, factor: int) -> None:
    """Rescale the cameras and point images and depth maps to copies of the rescaled size.

    Depth maps of another size than the images stay: nerfstudio fits them to the cameras when it reads them. So do label
    maps, which `label_maps` reads at the size of the training image.
    """
    outputs.cameras.rescale_output_resolution(scaling_factor=1.0 / factor)
    size = (int(outputs.cameras.height[0]), int(outputs.cameras.width[0]))
    if min(size) < 1:
        raise UserError(f"downscale factor {factor} leaves no pixel of {recording.images[0]}: choose a smaller one")
    sizes = [size] * len(outputs.image_filenames)
    outputs.image_filenames = downscaled_copies(outputs.image_filenames, sizes, factor, recording.folder, "area")
    depths = outputs.metadata["depth_filenames"]
    if depths is not None and check_depths(depths[:1]) == recording.size:
        depths = downscaled_copies(depths, sizes, factor, recording.folder, "nearest")
        outputs.metadata["depth_filenames"] = depths
