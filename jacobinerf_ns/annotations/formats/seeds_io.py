"""Seeds from label files of other tools, and seeds as such files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from jacobinerf_ns.annotations.changes import add_label, next_id
from jacobinerf_ns.annotations.formats.base import (
    FileLabel,
    ImageNames,
    LabelledImage,
    Size,
    check_size,
    label_file_names,
)
from jacobinerf_ns.annotations.formats.png import write_index_png, write_legend
from jacobinerf_ns.annotations.formats.registry import SeedFormatName, load_format
from jacobinerf_ns.annotations.formats.sources import open_source
from jacobinerf_ns.annotations.schema import (
    MAX_ID,
    Annotations,
    Box,
    Click,
    InImage,
    Label,
    Mask,
    Scribble,
    Seed,
    drawn,
)
from jacobinerf_ns.annotations.store import MASK_FOLDER
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.digests import digest
from jacobinerf_ns.files.grids import resample
from jacobinerf_ns.files.index_maps import read_label_map


def import_seeds(
    annotations: Annotations, source: Path, annotation_folder: Path, known_images: Mapping[str, Size]
) -> Annotations:
    """Add what label files mark as positive seeds; labels of one name are one label.

    Masks of an image become one index PNG in `annotation_folder`/masks; where they overlap, the later one wins. Points
    become clicks, rectangles boxes, lines scribbles. New labels keep the file's id where it is free, and its colour;
    labels of the file's legend that mark nothing are left out, and seeds that are there already are not added again.

    Args:
        annotations: what there is.
        source: an index PNG, a COCO or LabelMe file, or a folder of index PNGs or LabelMe files.
        annotation_folder: folder of the annotation file.
        known_images: (height, width) in pixels of the capture's images at their original size, by file name.

    Raises:
        UserError: a file is damaged or marks nothing, is of an unknown image or another size, or the folder cannot be
            written to. No mask is left behind then.
    """
    found = open_source(source, known_images, annotations.labels)
    plan = _LabelPlan(annotations, found.labels, source)
    names = ImageNames(known_images)
    masks = _MaskFolder(annotation_folder)
    seeds: list[Seed] = []
    try:
        for image in found.images:
            name = names.match(image.name, source)
            check_size(image, known_images, name, source)
            seeds += _seeds(image, name, plan, masks)
    except BaseException:
        masks.undo()
        raise
    if not seeds:
        raise UserError(f"{source} has no label at all: mark something in it, or give another file")
    new = [seed for seed in dict.fromkeys(seeds) if seed not in annotations.seeds]
    return annotations.model_copy(
        update={
            "labels": (*annotations.labels, *plan.new({seed.label for seed in new})),
            "seeds": (*annotations.seeds, *new),
        }
    )


def export_seeds(
    annotations: Annotations,
    rasterise: Callable[[InImage], Bool[np.ndarray, "height width"]],
    target: Path,
    format: SeedFormatName,
    known_images: Mapping[str, Size] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the positive seeds of every image as label maps; where they overlap, the later one wins.

    Clicks in space belong to no image and are left out.

    Args:
        annotations: what to write.
        rasterise: pixels of a seed, at the seed's own size.
        target: the file for `coco`, the folder for the others (which get a `classes.json` too).
        format: of the files.
        known_images: (height, width) in pixels of the images at their original size, by file name; images that are not
            in it are written at the size of their largest seed.
        overwrite: replace files that are there.

    Returns:
        The files that hold the regions.

    Raises:
        UserError: nothing to write, or a file exists or cannot be written.
    """
    groups: dict[str, list[InImage]] = {}
    for seed in (part for given in annotations.seeds for part in drawn(given)):
        if isinstance(seed, InImage) and not seed.negative:
            groups.setdefault(seed.image, []).append(seed)
    if not groups:
        raise UserError("no positive seed in any image: there is nothing to export")
    maps = ((name, _label_map(seeds, rasterise, (known_images or {}).get(name))) for name, seeds in groups.items())
    form = load_format(format)
    if form.write_set is not None:
        form.write_set(target, maps, annotations.labels, overwrite=overwrite)
        return [target]
    assert form.write_image is not None
    paths = [target / name for name in label_file_names(list(groups), form.suffix)]
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]} is there already: choose another folder, or ask to overwrite it")
    write_legend(target, annotations.labels, overwrite)
    for path, (name, ids) in zip(paths, maps, strict=True):
        form.write_image(path, name, ids, annotations.labels, overwrite)
    return paths


class _LabelPlan:
    """Gives each label of a file its label here; remembers which are new."""

    def __init__(self, annotations: Annotations, legend: Sequence[FileLabel], source: Path) -> None:
        self._annotations = annotations
        self._old = len(annotations.labels)
        self._source = source
        self._legend: dict[str, FileLabel] = {}
        for found in legend:
            self._legend.setdefault(found.name.strip(), found)
        self._wanted = {found.id for found in legend if found.id is not None and 1 <= found.id <= MAX_ID}

    @property
    def labels(self) -> tuple[Label, ...]:
        """All labels so far."""
        return self._annotations.labels

    def label(self, found: FileLabel) -> Label:
        """Return the label of that name, made at its first use.

        Raises:
            UserError: it cannot be made.
        """
        name = found.name.strip()
        for label in self.labels:
            if label.name == name:
                return label
        known = self._legend.get(name, found)
        taken = {label.id for label in self.labels}
        number = known.id
        if number is None or number in taken or not 1 <= number <= MAX_ID:
            # An id that another entry of the legend will ask for is left to it.
            number = next_id(taken | self._wanted)
        try:
            self._annotations, label = add_label(self._annotations, name, known.colour, number)
        except UserError as error:
            raise UserError(f"{self._source}: {error}") from error
        return label

    def new(self, used: set[int]) -> list[Label]:
        """Return the new labels among the used ids, in the order of the legend."""
        order = {name: position for position, name in enumerate(self._legend)}
        made = [label for label in self.labels[self._old :] if label.id in used]
        return sorted(made, key=lambda label: order.get(label.name, len(order)))


class _MaskFolder:
    """Index PNGs of imported masks; remembers what it wrote, to take it back."""

    def __init__(self, annotation_folder: Path) -> None:
        self._folder = annotation_folder
        self._written: list[Path] = []

    def add(self, image: str, ids: Int[np.ndarray, "height width"], labels: Sequence[Label]) -> str:
        """Write a label map; return its name relative to the annotation file's folder.

        Raises:
            UserError: it cannot be written, or another file has its name.
        """
        content = digest([str(ids.shape).encode(), ids.astype("<u2").tobytes()])
        name = f"{MASK_FOLDER}/{Path(image).stem}-{content[:10]}.png"
        path = self._folder / name
        if path.exists():
            if not np.array_equal(read_label_map(path, (ids.shape[0], ids.shape[1])).numpy(), ids):
                raise UserError(f"{path} is there already and holds something else: move it away")
            return name
        write_index_png(path, ids, labels)
        self._written.append(path)
        return name

    def undo(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)


def _seeds(image: LabelledImage, name: str, plan: _LabelPlan, masks: _MaskFolder) -> Iterator[Seed]:
    """Return the seeds of one image: its masks first."""
    height, width = image.size
    ids = np.zeros(image.size, dtype=np.uint16)
    others: list[Seed] = []
    where = {"image": name, "width": width, "height": height}
    for region in image.regions:
        label = plan.label(region.label).id
        if region.mask is not None:
            ids[region.mask] = label
        elif region.kind == "click":
            others.append(Click(label=label, pixel=region.points[0], **where))
        elif region.kind == "box":
            others.append(Box(label=label, corner=region.points[0], opposite=region.points[1], **where))
        else:
            others.append(Scribble(label=label, points=region.points, **where))
    present = np.unique(ids[ids != 0]).tolist()
    if present:
        file = masks.add(name, ids, plan.labels)
        yield from (Mask(label=number, file=file, value=number, **where) for number in present)
    yield from others


def _label_map(
    seeds: Sequence[InImage], rasterise: Callable[[InImage], Bool[np.ndarray, "height width"]], size: Size | None
) -> Int[np.ndarray, "height width"]:
    """Return the label map of one image. A seed made on a smaller copy covers the pixels whose centres it covers."""
    height, width = size or max((seed.height, seed.width) for seed in seeds)
    ids = np.zeros((height, width), dtype=np.uint16)
    for seed in seeds:
        mask = rasterise(seed)
        assert mask.shape == (seed.height, seed.width), "a seed is rasterised at its own size"
        ids[resample(mask, (height, width))] = seed.label
    return ids
