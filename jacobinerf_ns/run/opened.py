"""A trained run: its capture, read from `config.yml` alone, and the run itself, opened with its last checkpoint."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser

from jacobinerf_ns.annotations.changes import set_view
from jacobinerf_ns.annotations.notes import Notes
from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.annotations.settings import adjusted
from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME, read_annotations
from jacobinerf_ns.compat.checkpoints import latest_checkpoint
from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.compat.opening import load_checkpoint
from jacobinerf_ns.errors import UserError, caught_outside, reason
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.labels.keeper import LabelMaker
from jacobinerf_ns.labels.words import Answer
from jacobinerf_ns.pipeline import JacobiNeRFPipeline, JacobiNeRFPipelineConfig
from jacobinerf_ns.run.config_file import read_config
from jacobinerf_ns.run.labelled_views import Labels
from jacobinerf_ns.run.photos import Photo, Split, list_photos
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig


@dataclass(eq=False, repr=False)
class Run:
    """A trained run, ready to render: annotations are read from it, fitted to labels, and saved to it."""

    config: JacobiNeRFTrainerConfig
    pipeline: JacobiNeRFPipeline
    folder: Path
    """Where config.yml lies; what people make for this run is kept here."""
    step: int
    """Training step of the checkpoint."""
    _saved: Annotations | None = field(default=None, init=False)
    _listed: dict[tuple[Split, bool], tuple[Photo, ...]] = field(default_factory=dict, init=False)

    @property
    def annotations_file(self) -> Path:
        """The file that the run's annotations lie in, whether it is there yet or not."""
        return Path(os.path.abspath(annotations_path(self.config.pipeline, self.folder / "config.yml")))

    @property
    def annotations(self) -> Notes:
        """The run's annotations as its file has them now; empty where there is no file.

        Raises:
            UserError: the file is damaged.
        """
        photos, found = self.photos("train"), read_annotations(self.annotations_file)
        sizes = tuple((width, height) for height, width in (photo.size for photo in photos))
        paths = tuple(photo.path for photo in photos)
        return Notes(found, self.annotations_file, found, paths, sizes, ask=self.find)

    def find(self, words: str, against: Sequence[str] = (), teacher: ExtractorConfig | None = None) -> Answer:
        """Look for words in the training photos, and say how sure it is and at which places they stand.

        Args:
            words: what to look for, as in "a wooden chair".
            against: words that these must fit better than; none are object, things, stuff and texture.
            teacher: that knows words; None is the run's own.

        Raises:
            UserError: words that cannot be asked, or a teacher that knows none or cannot be had.
        """
        extractor = None if teacher is None else teacher.setup(device=self.pipeline.model.device)
        return self.pipeline.words.find(words, against, extractor)

    def photos(self, split: Split = "all", full_resolution: bool = False) -> tuple[Photo, ...]:
        """List the photos of a split: their names, files, sizes and cameras (`list_photos`)."""
        key = split, full_resolution
        if key not in self._listed:
            with quiet_nerfstudio():
                self._listed[key] = tuple(list_photos(self.pipeline.datamanager, split, full_resolution))
        return self._listed[key]

    def fit(
        self,
        notes: Notes | Annotations,
        *,
        refine: int | None = None,
        smooth: float | None = None,
        space: Literal["2d", "3d"] | None = None,
        void_below: float | None = None,
        threshold: float | Literal["own"] | None = None,
    ) -> Labels:
        """Render the seeds of annotations, and make labels of what they hit.

        Labels compete: each pixel gets the one it resonates with most. A label alone gets the pixels that resonate with
        it at least as much as its threshold. Settings that are None are those of the annotations. Seeds are
        rendered once each: with one more click, only that one is.

        Args:
            notes: from `annotations`; or the content of an annotation file whose masks lie beside the run's own.
            refine: rounds in which what stands for a label is refined on the scene (J-NeRF+: 10).
            smooth: share (0..1) of a pixel's response that comes from the nearest surfaces (J-NeRF+: 0.8).
            space: responses are taken on rendered pixels (`2d`) or per sample in space (`3d`).
            void_below: pixels of less confidence (0..1) get no label.
            threshold: response (0..1) that labels are measured against, or each label's `own`.

        Raises:
            UserError: a label has no positive seed or none of its seeds hits a surface, a photo of a seed is not the
                run's, or a setting is out of range.
        """
        given = {"refine": refine, "smooth": smooth, "space": space, "void_below": void_below, "threshold": threshold}
        annotations = notes if isinstance(notes, Annotations) else notes.annotations
        propagation = adjusted(annotations.view.propagation, given)
        annotations = set_view(annotations, propagation=propagation)
        _check_seeds(annotations)
        if isinstance(notes, Annotations):
            return self._fit(annotations, self.annotations_file.parent)
        with notes.mask_folder() as folder:
            return self._fit(annotations, folder)

    def save(self, notes: Notes) -> None:
        """Write notes to the run's annotation file, which then holds just them; viewers that are open follow.

        Nobody's work is lost: a file that another program changed since the notes were read is left as it is. What this
        run saved itself may be replaced by any later or earlier notes.

        Raises:
            UserError: another program changed the file, it is another run's, or it cannot be written.
        """
        if notes.file != self.annotations_file:
            raise UserError(
                f"these notes belong to {notes.file}, expected {self.annotations_file}: begin with this run's "
                "annotations, or add a file with jacobinerf annotate --merge"
            )
        self._saved = notes.save(self._saved)

    def __repr__(self) -> str:
        """Name method, step and folder."""
        return f"Run({self.config.method_name}, step {self.step}, {self.folder})"

    def _fit(self, annotations: Annotations, folder: Path) -> Labels:
        snapshot = self._maker.snapshot_of(annotations, folder)
        assert snapshot is not None
        return Labels(self.pipeline.model, snapshot, self.photos)

    @cached_property
    def _maker(self) -> LabelMaker:
        """One for all fits: it remembers what seeds look like."""
        return self.pipeline.label_maker()


class Capture(NamedTuple):
    """The training images of a run, and where its annotations lie."""

    annotations: Path
    filenames: list[Path]
    sizes: list[tuple[int, int]]
    """(width, height) in pixels of each image, before any downscaling."""


def annotations_path(pipeline: JacobiNeRFPipelineConfig, config_path: Path) -> Path:
    """Give a run's own annotation file; runs that are older than annotations do not name one."""
    return getattr(pipeline, "annotations", None) or config_path.absolute().parent / ANNOTATIONS_NAME


def open_run(
    config_path: str | Path,
    annotations: str | Path | None = None,
    test_mode: Literal["test", "val", "inference"] = "test",
    change: Callable[[JacobiNeRFTrainerConfig], None] | None = None,
    load_photos: bool = False,
) -> Run:
    """Open a trained run with its last checkpoint.

    Args:
        config_path: the run's config.yml.
        annotations: annotation file to use; none is the run's own.
        test_mode: nerfstudio's; of its modes `inference` knows no training resolution.
        change: changes the config before anything is built.
        load_photos: load all photos, which training batches are made of; rendering needs none.

    Raises:
        UserError: no such file, not a run of this package, or no checkpoint.
    """
    config_path = Path(config_path).absolute()
    config = _prepared(_own_config(config_path), config_path, annotations, load_photos)
    if change is not None:
        change(config)
    config.load_dir = config.get_checkpoint_dir()
    with quiet_nerfstudio(), caught_outside(), _same_order_of_photos():
        try:
            pipeline = config.pipeline.setup(device=_device(), test_mode=test_mode)
            assert isinstance(pipeline, JacobiNeRFPipeline)
            pipeline.eval()
            _, step = load_checkpoint(config, pipeline)
        except OSError as error:
            raise UserError(f"{config_path} cannot be opened ({reason(error)}): put its files back") from error
    return Run(config, pipeline, config_path.parent, step)


def annotations_of(config_path: Path) -> Path:
    """Give the annotation file of a run that is not opened.

    Raises:
        UserError: no such file, or not a run of this package.
    """
    return annotations_path(_own_config(config_path.absolute()).pipeline, config_path)


def read_capture(config_path: Path) -> Capture:
    """Ask the dataparser of a run for its training images; no image is opened, and no model is built.

    Raises:
        UserError: the file is not a run's config.yml, or the capture is gone or damaged.
    """
    config = read_config(config_path)
    parser = _parser(config)
    if hasattr(parser, "downscale_factor"):
        setattr(parser, "downscale_factor", 1)  # noqa: B010 (only some parsers have it)
    with quiet_nerfstudio():
        try:
            outputs = parser.get_dataparser_outputs(split="train")
        except (AssertionError, OSError) as error:
            raise UserError(f"the capture of {config_path} cannot be read: {' '.join(str(error).split())}") from error
    widths, heights = outputs.cameras.width.flatten().tolist(), outputs.cameras.height.flatten().tolist()
    annotations = annotations_path(config.pipeline, config_path)
    return Capture(annotations, list(outputs.image_filenames), list(zip(widths, heights, strict=True)))


def parser_of(config_path: Path) -> tuple[DataParser, Path | None]:
    """Return the dataparser of a run, with its options, and the folder of label maps that it was given.

    Raises:
        UserError: the file is not a run's config.yml.
    """
    config = read_config(config_path)
    return _parser(config), getattr(config.pipeline.datamanager, "label_dir", None)


def _parser(config: Any) -> DataParser:
    datamanager = config.pipeline.datamanager
    parser_config = datamanager.dataparser
    # As nerfstudio's data manager does: --data on the command line goes before the parser's own.
    data = datamanager.data or config.data
    if data is not None:
        parser_config.data = Path(data)
    return parser_config.setup()


def _own_config(path: Path) -> JacobiNeRFTrainerConfig:
    """Return the config of a run of this package as it was written."""
    if not path.is_file():
        raise UserError(f"no such file: {path}: expected the config.yml that training wrote")
    config = read_config(path)
    if not isinstance(config, JacobiNeRFTrainerConfig):
        raise UserError(f"{path} is a run of {config.method_name}: expected a jacobinerf run")
    return config


def _device() -> torch.device:
    """Return nerfstudio's choice."""
    return torch.device(torch.cuda.current_device() if torch.cuda.is_available() else "cpu")


@contextmanager
def _same_order_of_photos() -> Iterator[None]:
    """Let nerfstudio, which loads photos in a random order, take the same one every time a run is opened."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def _prepared(
    config: JacobiNeRFTrainerConfig, config_path: Path, annotations: str | Path | None, load_photos: bool
) -> JacobiNeRFTrainerConfig:
    """Return a run's own config, changed to be looked at instead of trained."""
    latest_checkpoint(config.get_checkpoint_dir())
    own = annotations_path(config.pipeline, config_path)
    config.pipeline.annotations = own if annotations is None else Path(annotations)
    if not load_photos:
        # nerfstudio would load them all.
        config.pipeline.datamanager.train_num_images_to_sample_from = 1
        config.pipeline.datamanager.eval_num_images_to_sample_from = 1
    return config


def _check_seeds(annotations: Annotations) -> None:
    """Refuses what no label can be made of."""
    if not annotations.labels:
        raise UserError("no label is there to fit: click first, as in run.annotations.click(label, image=..., xy=...)")
    seeded = {seed.label for seed in annotations.seeds if not seed.negative}
    bare = [label.name for label in annotations.labels if label.id not in seeded]
    if bare:
        raise UserError(f"label {bare[0]!r} has no positive seed: click it, or remove it with remove({bare[0]!r})")
