"""Annotations of a capture as Python makes them: by names of photos and labels, kept in memory until they are saved."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool
from PIL import Image

from jacobinerf_ns.annotations import changes
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, InImage, Label, Mask, Scribble, TextSeed
from jacobinerf_ns.annotations.store import MASK_FOLDER, AnnotationStore
from jacobinerf_ns.errors import UserError, plain_errors
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.digests import digest
from jacobinerf_ns.files.names import find_image, image_name

MASK_VALUE = 1
"""Index of the marked pixels in mask files that are written here."""
DIGITS = 16
"""Of the hash that a mask file is named by: other pixels never get a name that is taken."""

XY = Sequence[int] | np.ndarray
"""Column and row of a pixel, counted from the top left of the original photo."""


class Found(Protocol):
    """What is said of words."""

    def seed(self, label: int, negative: bool = False) -> TextSeed:
        """Return them as a seed of a label; UserError where nothing like that is there."""
        ...


Asker = Callable[[str, Sequence[str], Any], Found]
"""Looks for words, compared with others, by a teacher's config or None."""


@dataclass(frozen=True)
class Notes:
    """Labels and seeds of a capture, with the photos that they lie in. Immutable: each method gives new notes.

    A label is made when a seed names it first, with the next free id and colour. Photos are the run's training photos,
    by file name, with parent folders where several have it; pixels are counted in the original photo. All methods raise
    `UserError` for a photo or label that there is not, and for pixels outside of the photo.
    """

    annotations: Annotations
    """What is said of the capture."""
    file: Path
    """The annotation file."""
    found: Annotations
    """What the file held when it was read."""
    photos: tuple[Path, ...]
    """The training photos."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels of each original."""
    drawn: Mapping[str, bytes] = field(default_factory=dict)
    """Mask files that are not saved yet: PNGs by their names beside the annotation file."""
    ask: Asker | None = field(default=None, compare=False)
    """Looks for words in the photos; only a run can."""

    def click(self, label: str, image: str, xy: XY, negative: bool = False) -> Notes:
        """Add a click on a pixel of a photo; a negative one says that the pixel is not of the label."""
        return self._with(Click, label, image, negative, pixel=_pixel(xy))

    def scribble(self, label: str, image: str, points: Sequence[XY], radius: int = 0, negative: bool = False) -> Notes:
        """Add a line through pixels, with `radius` pixels on each side of it."""
        pixels = [_pixel(point) for point in points]
        return self._with(Scribble, label, image, negative, points=pixels, radius=radius)

    def box(self, label: str, image: str, corner: XY, opposite: XY, negative: bool = False) -> Notes:
        """Add all pixels of a rectangle, both corners included."""
        return self._with(Box, label, image, negative, corner=_pixel(corner), opposite=_pixel(opposite))

    def mask(self, label: str, image: str, mask: Bool[np.ndarray, "height width"], negative: bool = False) -> Notes:
        """Add the true pixels of an array of the original photo's size; saving the notes writes it as a file."""
        width, height = self.sizes[find_image(image, self.photos)]
        marked = np.asarray(mask) != 0
        if marked.shape != (height, width):
            raise UserError(
                f"the mask has the shape {marked.shape}, expected {(height, width)}, height and width of {image}: "
                "draw it on the original photo"
            )
        if not marked.any():
            raise UserError(f"the mask in {image} has no pixel that is true: expected at least one")
        content = _png(marked)
        name = f"{MASK_FOLDER}/{digest([content])[:DIGITS]}.png"
        notes = self._with(Mask, label, image, negative, file=name, value=MASK_VALUE)
        return replace(notes, drawn={**self.drawn, name: content})

    def say(
        self, label: str, words: str, against: Sequence[str] = (), negative: bool = False, teacher: Any = None
    ) -> Notes:
        """Add words: the places in the photos that they fit best become a seed.

        Args:
            label: its name.
            words: what it is, as in "a wooden chair".
            against: words that these must fit better than; none are object, things, stuff and texture.
            negative: the words say what is not of the label.
            teacher: config of a teacher that knows words, such as `ClipConfig()`; None is the run's own.

        Raises:
            UserError: nothing like that is in the photos (`Run.find` asks without that), or words that cannot be asked.
        """
        if self.ask is None:
            raise UserError("words are looked for in a run's photos: begin with run.annotations")
        annotations, known = self._labelled(label)
        seed = self.ask(words, against, teacher).seed(known.id, negative)
        return replace(self, annotations=changes.add_seed(annotations, seed))

    def rename(self, label: str, name: str) -> Notes:
        """Give a label another name; its id, colour and seeds stay."""
        known = changes.label_named(self.annotations, label)
        return replace(self, annotations=changes.rename_label(self.annotations, known.id, name))

    def grow(self, label: str, levels: int) -> Notes:
        """Select a label so many levels larger than its natural size; below 0 smaller, 0 is the natural one."""
        known = changes.label_named(self.annotations, label)
        return replace(self, annotations=changes.set_grow(self.annotations, known.id, levels))

    def remove(self, label: str) -> Notes:
        """Take a label away, with its seeds and edits."""
        known = changes.label_named(self.annotations, label)
        return replace(self, annotations=changes.remove_label(self.annotations, known.id))

    @contextmanager
    def mask_folder(self) -> Iterator[Path]:
        """Yield a folder that all mask files of the notes are in, also those that are not saved yet."""
        if not self.drawn:
            yield self.file.parent
            return
        with TemporaryDirectory() as name:
            for file in self._mask_names():
                target, saved = Path(name) / file, self.file.parent / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if file in self.drawn:
                    target.write_bytes(self.drawn[file])
                elif saved.is_file():
                    shutil.copyfile(saved, target)
            yield Path(name)

    def save(self, own: Annotations | None = None) -> Annotations:
        """Write the notes to their file, under its lock, and return what it holds then.

        Args:
            own: what this program itself wrote last: it may be replaced, as what was read may.

        Raises:
            UserError: the file has been changed by others, is damaged, or cannot be written. It is left as it is.
        """

        def put(current: Annotations) -> Annotations:
            if current not in (self.found, self.annotations, own):
                raise UserError(
                    f"{self.file} was changed by another program since these notes began, and is left as it is: "
                    "start again from run.annotations, which has those changes"
                )
            for name in self._mask_names() & self.drawn.keys():
                with writing(self.file.parent / name, overwrite=True) as temporary:
                    temporary.write_bytes(self.drawn[name])
            return self.annotations

        return AnnotationStore(self.file).change(put)

    def __repr__(self) -> str:
        """Name the labels and count their seeds."""
        counts = [f"{label.name}: {len(self.annotations.seeds_of(label.id))}" for label in self.annotations.labels]
        seeds = f"seeds of {', '.join(counts)}" if counts else "no labels yet"
        return f"Notes({seeds}; {len(self.photos)} photos; {self.file})"

    def _with(self, kind: Callable[..., InImage], label: str, image: str, negative: bool, **shape: Any) -> Notes:
        """Return the notes and one seed."""
        index = find_image(image, self.photos)
        width, height = self.sizes[index]
        annotations, known = self._labelled(label)
        name = image_name(self.photos, index)
        with plain_errors():
            seed = kind(label=known.id, negative=negative, image=name, width=width, height=height, **shape)
        assert isinstance(seed, Click | Scribble | Box | Mask)
        return replace(self, annotations=changes.add_seed(annotations, seed))

    def _labelled(self, name: str) -> tuple[Annotations, Label]:
        known = [label for label in self.annotations.labels if label.name == name.strip()]
        return (self.annotations, known[0]) if known else changes.add_label(self.annotations, name)

    def _mask_names(self) -> set[str]:
        return {seed.file for seed in self.annotations.seeds if isinstance(seed, Mask)}


def _pixel(xy: XY) -> list[Any]:
    """Plain numbers: NumPy's own are refused by pydantic."""
    return np.asarray(xy).tolist()


def _png(marked: Bool[np.ndarray, "height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(marked.astype(np.uint8) * MASK_VALUE).save(buffer, format="PNG")
    return buffer.getvalue()
