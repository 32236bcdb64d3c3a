"""Dataparser `jacobinerf-data`: nerfstudio's `transforms.json`, plus what its own parser lacks.

Frames without an image file are dropped, a downscale factor needs no prepared folder, label maps are found, and bad
input is one clear line. Poses, cameras and splits stay nerfstudio's: its own parser reads a rewritten `transforms.json`
in which every image exists and every path is absolute.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from jacobinerf_ns.dataparsers.downscale import files_at_size, header_size, prepared_copy, whole_factor
from jacobinerf_ns.dataparsers.image_checks import check_training_files
from jacobinerf_ns.dataparsers.label_folders import folder_beside, label_files
from jacobinerf_ns.dataparsers.options import check_scales, check_splits
from jacobinerf_ns.dataparsers.transforms_file import Meta, read_transforms, warnings_of
from jacobinerf_ns.errors import UserError, reason, visible
from jacobinerf_ns.files.index_maps import read_classes

_LABEL_KEYS = {"semantics_path": "semantics_filenames", "instances_path": "instances_filenames"}
_OTHER_EVAL = {"val": "test", "test": "val"}
_reported: set[tuple[Path, str]] = set()


@dataclass
class JacobiNeRFDataParserConfig(NerfstudioDataParserConfig):
    """A capture in nerfstudio's format, with label maps where it has them."""

    _target: type = field(default_factory=lambda: JacobiNeRFDataParser)
    """Class to build."""
    downscale_factor: int | None = None
    """Image sizes are divided by this whole number. A prepared folder images_N beside the images is used when it is
    complete, otherwise copies are made once in ~/.cache/jacobinerf-ns. If not set, prepared folders are chosen such
    that the larger side is at most 1600 pixels."""


@dataclass
class JacobiNeRFDataParser(Nerfstudio):
    """Reads a capture for one split; `metadata` of its outputs holds what our datamanager and evaluation need.

    Beyond nerfstudio's: `semantics_filenames` and `instances_filenames` (one path per image, or None), `classes` (names
    by id, or None) and `original_sizes` ((height, width) in pixels of each image before downscaling). Label maps that
    transforms.json does not name are looked for in the folders `semantics` and `instances` of the capture.
    """

    config: JacobiNeRFDataParserConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """Return the outputs of one split.

        `downscale_factor` is only set from outside: by nerfstudio, to 1, where cameras are wanted and images are not.
        Then no image is opened and none is resized.

        Raises:
            UserError: the capture is missing or damaged, or has no image for this split.
        """
        check_scales(self.config)
        check_splits(self.config)
        json_path, folder = _locate(self.config.data)
        listed = read_transforms(json_path)
        _warn(json_path, listed)
        factor = whole_factor(self.config.downscale_factor)
        frames = [frame for frame in listed["frames"] if _image_exists(folder, frame["file_path"], factor)]
        _report_dropped(json_path, listed["frames"], frames)
        meta = {**listed, "frames": frames, **_split_lists(listed, frames, folder, split, json_path)}
        outputs = _run_stock(self.config, _absolute(meta, folder, self.config.data), split, json_path)
        self._add_labels(outputs, frames, folder, json_path)
        if self.downscale_factor is None:
            _check_sizes(outputs, folder, factor)
            factor = factor or self._automatic_factor(frames[0], folder)
        else:
            factor = whole_factor(self.downscale_factor)
        if factor is not None and factor > 1:
            _downscale(outputs, factor, folder)
        if self.downscale_factor is None:
            check_training_files(outputs.image_filenames, outputs.mask_filenames or [])
        return outputs

    def _automatic_factor(self, frame: Meta, folder: Path) -> int:
        """Apply nerfstudio's rule: halve while a side exceeds 1600 pixels and a prepared folder exists."""
        chooser = Nerfstudio(self.config)
        chooser._get_fname(Path(frame["file_path"]), folder)
        assert chooser.downscale_factor is not None
        return chooser.downscale_factor

    def _add_labels(self, outputs: DataparserOutputs, frames: list[Meta], folder: Path, json_path: Path) -> None:
        by_image = {_join(folder, frame["file_path"]): frame for frame in frames}
        used = [by_image[path] for path in outputs.image_filenames]
        for key, name in _LABEL_KEYS.items():
            files = _listed_files(frames, used, key, folder, json_path)
            beside = folder_beside(folder, key.removesuffix("_path")) if files is None else None
            if beside is not None:
                found = dict(zip(by_image, label_files(beside, list(by_image)), strict=True))
                files = [found[path] for path in outputs.image_filenames]
            outputs.metadata[name] = files
        classes = folder / "classes.json"
        outputs.metadata["classes"] = read_classes(classes) if classes.exists() else None
        heights, widths = outputs.cameras.height.flatten().tolist(), outputs.cameras.width.flatten().tolist()
        outputs.metadata["original_sizes"] = list(zip(heights, widths, strict=True))


def _locate(data: Path) -> tuple[Path, Path]:
    """Return the transforms file and the absolute folder its paths are relative to; `data` is the one or the other."""
    if data.suffix == ".json":
        if not data.is_file():
            raise UserError(f"no such file: {data}: give --data a capture's folder or its transforms.json")
        return data.absolute(), data.absolute().parent
    if not data.is_dir():
        raise UserError(f"no such data folder: {data}: give --data a folder that holds a transforms.json")
    if not (data / "transforms.json").is_file():
        raise UserError(f"no transforms.json in {data}: give --data a capture in nerfstudio's format (ns-process-data)")
    return (data / "transforms.json").absolute(), data.absolute()


def _join(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / name))


def _image_exists(folder: Path, name: str, factor: int | None) -> bool:
    path = _join(folder, name)
    return path.is_file() or prepared_copy(folder, path, factor, "images").is_file()


def _report_dropped(json_path: Path, listed: list[Meta], kept: list[Meta]) -> None:
    """Say once per process how many frames have no image; an error when none has one."""
    names = {frame["file_path"] for frame in kept}
    dropped = [frame["file_path"] for frame in listed if frame["file_path"] not in names]
    if not kept:
        raise UserError(
            f"none of the {len(listed)} frames of {json_path} has an image file (first: {dropped[0]}): "
            "put the images beside transforms.json"
        )
    line = f"dropped {len(dropped)} of {len(listed)} frames: no image file (first: {dropped[0] if dropped else ''})"
    if dropped and (json_path, line) not in _reported:
        _reported.add((json_path, line))
        print(visible(line), flush=True)


def _warn(json_path: Path, meta: Meta) -> None:
    """Say once per process what is odd about the frames."""
    for line in warnings_of(meta):
        if (json_path, line) not in _reported:
            _reported.add((json_path, line))
            print(f"warning: {visible(line)}", flush=True)


def _split_lists(meta: Meta, frames: list[Meta], folder: Path, split: str, json_path: Path) -> Meta:
    """Return the list of file names of `split` that have an image; empty when the capture lists no splits."""
    if not any(f"{name}_filenames" in meta for name in ("train", "val", "test")):
        return {}
    source = split if f"{split}_filenames" in meta else _OTHER_EVAL.get(split, split)
    if f"{source}_filenames" not in meta:
        wanted = "train_filenames" if split == "train" else "val_filenames or test_filenames"
        raise UserError(f"{json_path} lists images of some splits but not {wanted}: add the list, or remove all lists")
    kept = {_join(folder, frame["file_path"]) for frame in frames}
    known = {_join(folder, frame["file_path"]) for frame in meta["frames"]}
    chosen = [_join(folder, name) for name in meta[f"{source}_filenames"]]
    stray = [path for path in chosen if path not in known and path.is_file()]
    if stray:
        raise UserError(f"{json_path} lists {stray[0].name} in {source}_filenames, but has no frame with its pose")
    chosen = [str(path) for path in chosen if path in kept]
    if not chosen:
        raise UserError(f"no image left in {source}_filenames of {json_path}: expected at least one that exists")
    return {f"{split}_filenames": chosen}


def _absolute(meta: Meta, folder: Path, data: Path) -> Meta:
    """Return `meta` with absolute paths, so that it means the same wherever it is read from."""
    keys = ("file_path", "mask_path", "depth_file_path")
    frames = [
        {**frame, **{key: str(_join(folder, frame[key])) for key in keys if key in frame}} for frame in meta["frames"]
    ]
    absolute = {**meta, "frames": frames}
    if "ply_file_path" in meta:
        absolute["ply_file_path"] = str(_join(folder, meta["ply_file_path"]))
    if "applied_transform" not in meta and (data / "colmap" / "sparse" / "0").is_dir():
        # nerfstudio infers this for captures of its older tools from a folder that is not beside the rewritten file.
        absolute["applied_transform"] = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    return absolute


def _run_stock(config: NerfstudioDataParserConfig, meta: Meta, split: str, json_path: Path) -> DataparserOutputs:
    """Run nerfstudio's own parser on a rewritten `transforms.json`, at the original size."""
    with tempfile.TemporaryDirectory() as temporary:
        rewritten = Path(temporary) / "transforms.json"
        try:
            rewritten.write_text(json.dumps(meta), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{rewritten} cannot be written ({reason(error)}): free some space, or set TMPDIR"
            ) from error
        stock = Nerfstudio(replace(config, data=rewritten), downscale_factor=1)
        try:
            outputs = stock.get_dataparser_outputs(split)
        except ZeroDivisionError as error:
            raise UserError(
                f"all cameras of {json_path} are at one place: expected views from several, or --auto-scale-poses False"
            ) from error
        except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{json_path}: nerfstudio's parser refuses it ({reason(error)}): correct it") from error
    if not outputs.image_filenames:
        raise UserError(
            f"no image in split '{split}' of {json_path} ({len(meta['frames'])} frames, eval-mode {config.eval_mode}): "
            "add frames, or choose another eval-mode"
        )
    return outputs


def _listed_files(frames: list[Meta], used: list[Meta], key: str, folder: Path, json_path: Path) -> list[Path] | None:
    """Return the paths that the frames of a split name under `key`, or None when the capture has none."""
    without = [frame["file_path"] for frame in frames if key not in frame]
    if len(without) == len(frames):
        return None
    if without:
        raise UserError(
            f"{json_path}: {len(without)} of {len(frames)} frames have no {key} (first: {without[0]}): "
            "expected it for every frame, or for none"
        )
    paths = [_join(folder, frame[key]) for frame in used]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{json_path}: {key} names {missing[0]}, which is missing: put it there, or remove the entries")
    return paths


def _check_sizes(outputs: DataparserOutputs, folder: Path, factor: int | None) -> None:
    """Check that images and cameras agree: else every ray would silently pass through another pixel."""
    sizes = outputs.metadata["original_sizes"]
    images = list(zip(outputs.image_filenames, sizes, ["images"] * len(sizes), strict=True))
    masks = list(zip(outputs.mask_filenames or [], sizes, ["masks"] * len(sizes), strict=False))
    for path, expected, prefix in images + masks:
        if not path.is_file() and prepared_copy(folder, path, factor, prefix).is_file():
            continue
        found = header_size(path)
        if found != expected:
            raise UserError(
                f"image {path} is {found[1]}x{found[0]} pixels (width x height), its camera in transforms.json is "
                f"{expected[1]}x{expected[0]}: correct w, h and the intrinsics"
            )


def _downscale(outputs: DataparserOutputs, factor: int, folder: Path) -> None:
    """Rescale the cameras and point images, masks and depth maps to files of the rescaled size."""
    outputs.cameras.rescale_output_resolution(scaling_factor=1.0 / factor)
    cameras = outputs.cameras
    sizes = list(zip(cameras.height.flatten().tolist(), cameras.width.flatten().tolist(), strict=True))
    if min(min(size) for size in sizes) < 1:
        raise UserError(f"downscale factor {factor} leaves no pixel of the images in {folder}: choose a smaller one")
    outputs.image_filenames = files_at_size(outputs.image_filenames, sizes, factor, folder, "images")
    if outputs.mask_filenames is not None:
        outputs.mask_filenames = files_at_size(outputs.mask_filenames, sizes, factor, folder, "masks")
    depths = outputs.metadata["depth_filenames"]
    if depths is not None and all(path.is_file() and path.suffix != ".npy" for path in depths):
        outputs.metadata["depth_filenames"] = files_at_size(depths, sizes, factor, folder, "depths")


jacobinerf_data = DataParserSpecification(
    config=JacobiNeRFDataParserConfig(),
    description="nerfstudio-data with missing images dropped, any downscale factor, and label maps",
)
