"""What a person says about a capture: labels, seeds and edits, as one small versioned file.

Frames and units: pixels are (x, y) = (column, row), whole numbers from the top left corner, counted in an image of the
`width` and `height` that stand beside them (a run may train on smaller copies). Origins and directions are in the
capture's own world frame, that of its `transforms.json`, so that they outlive retraining with other orientation,
centring or scale settings. Colours are 0..255.
"""

from __future__ import annotations

import base64
import unicodedata
from collections import Counter
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import visible
from jacobinerf_ns.files.outside import MAX_PATH_BYTES, MAX_PIXELS, MAX_SIDE

VERSION = 2
MAX_ID = 65535
"""Largest label id: index PNGs have 16 bits."""
MAX_GROW = 100
"""Levels that a label can be away from its natural one."""
_UNCHOSEN_THRESHOLD = 0.7
"""Version 1 wrote this number into every file, asked or not."""
MAX_WORDS = 200
"""Characters of a text."""
MAX_RELEVANCY = 1 << 16
"""Characters of a text's relevancy."""

Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = tuple[Finite, Finite, Finite]
LabelId = Annotated[int, Field(ge=1, le=MAX_ID)]
Pixel = tuple[int, int]

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (148, 103, 189),
    (140, 86, 75),
    (127, 127, 127),
    (188, 189, 34),
    (23, 190, 207),
)
"""Colours of new labels; the first seven are Okabe and Ito's, told apart by colour-blind people too."""


def _no_control_characters(text: str) -> str:
    """Refuse what would steer the terminal that the text is printed on, or cannot be written."""
    if text != visible(text) or text != text.encode("utf-8", "replace").decode("utf-8"):
        raise ValueError(f"{text!r} has control characters: choose another name")
    return text


_PRINTABLE = AfterValidator(_no_control_characters)

_PROPAGATION_RANGES: dict[str, tuple[float, float]] = {
    "clusters": (1, MAX_ID),
    "rounds": (1, 1000),
    "neighbours": (1, MAX_ID),
    "refine": (0, 1000),
    "smooth": (0, 1),
    "step": (1e-6, 1e3),
    "threshold": (0, 1),
    "strictness": (-1, 1),
    "temperature": (1e-6, 1e3),
    "void_below": (0, 1),
}


class Part(BaseModel):
    """A part of the file: immutable, and strict about what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(Part):
    """What a user names; 0 is no label's id, it means void."""

    id: LabelId
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), _PRINTABLE]
    colour: Colour
    grow: Annotated[int, Field(ge=-MAX_GROW, le=MAX_GROW)] = 0
    """How many levels its selection is from its natural size: 1 is the next larger thing, -1 the next smaller; beyond
    the last level it is the last."""


class SeedBase(Part):
    """What every seed has."""

    label: LabelId
    """Id of the label."""
    negative: bool = False
    """Says that this is *not* the label."""


class InImage(SeedBase):
    """A seed in a training image."""

    image: Annotated[str, Field(min_length=1, max_length=MAX_PATH_BYTES), _PRINTABLE]
    """File name of the image, with as many parent folders as tell it from the others."""
    width: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    height: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    """Size of the image that the seed's pixels are counted in."""

    @model_validator(mode="after")
    def _not_too_large(self) -> InImage:
        if self.width * self.height > MAX_PIXELS:
            raise ValueError(f"an image of {self.width}x{self.height} pixels, expected at most {MAX_PIXELS}")
        return self


class Click(InImage):
    """One pixel of an image."""

    kind: Literal["click"] = "click"
    pixel: Pixel

    @model_validator(mode="after")
    def _inside(self) -> Click:
        _check_inside(self, [self.pixel])
        return self


class Scribble(InImage):
    """A line of pixels with a width."""

    kind: Literal["scribble"] = "scribble"
    points: Annotated[tuple[Pixel, ...], Field(min_length=1)]
    radius: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Pixels on each side of the line."""

    @model_validator(mode="after")
    def _inside(self) -> Scribble:
        _check_inside(self, self.points)
        return self


class Box(InImage):
    """All pixels of a rectangle, both corners included."""

    kind: Literal["box"] = "box"
    corner: Pixel
    opposite: Pixel

    @model_validator(mode="after")
    def _inside(self) -> Box:
        _check_inside(self, [self.corner, self.opposite])
        return self


class Mask(InImage):
    """The pixels of an index PNG that have a value."""

    kind: Literal["mask"] = "mask"
    file: Annotated[str, Field(min_length=1, max_length=MAX_PATH_BYTES), _PRINTABLE]
    """Index PNG of the image's size; relative to the folder of the annotation file."""
    value: Annotated[int, Field(ge=0, le=MAX_ID)]
    """Index of the pixels that belong to the seed."""

    @model_validator(mode="after")
    def _relative(self) -> Mask:
        path = PurePosixPath(self.file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"mask file {self.file} is not inside the annotation file's folder")
        return self


class SpaceClick(SeedBase):
    """A ray into the scene, world frame; what it hits is the seed."""

    kind: Literal["space"] = "space"
    origin: Vector
    direction: Vector

    @model_validator(mode="after")
    def _has_direction(self) -> SpaceClick:
        if not any(self.direction):
            raise ValueError("the direction of a click in space is zero")
        return self


class SpaceBox(SeedBase):
    """A rectangle on a screen: rays from one point through it, world frame."""

    kind: Literal["space_box"] = "space_box"
    origin: Vector
    corners: tuple[Vector, Vector, Vector, Vector]
    """Directions through the corners, in turn around the rectangle, that end on one plane: what is between them is
    interpolated."""

    @model_validator(mode="after")
    def _has_directions(self) -> SpaceBox:
        if not all(any(corner) for corner in self.corners):
            raise ValueError("the direction through a corner of a box in space is zero")
        return self


class Place(Part):
    """A pixel of a training image that a text was resolved to."""

    image: Annotated[str, Field(min_length=1)]
    width: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    height: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    pixel: Pixel


class TextSeed(SeedBase):
    """Words, and the places in the training images that they were resolved to, once: rendering needs no teacher."""

    kind: Literal["text"] = "text"
    words: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_WORDS)]
    model: Annotated[str, Field(min_length=1)]
    """Of the words: an id on Hugging Face, a folder or a file."""
    against: tuple[str, ...] = ()
    """Words that they were compared with."""
    stands_out: Finite
    """Deviations of everyday words by which they fit the best place."""
    places: Annotated[tuple[Place, ...], Field(min_length=1, max_length=1000)]
    relevancy: Annotated[str, Field(max_length=MAX_RELEVANCY)] = ""
    """How likely the words are at random training pixels, a byte each in base64 (255 is 1): what the output `relevancy`
    is made of. Empty: not known."""
    photos: Annotated[int, Field(ge=0)] = 0
    """Training photos that these pixels were drawn from: of another number of photos they would be others."""

    @field_validator("relevancy")
    @classmethod
    def _bytes(cls, value: str) -> str:
        try:
            base64.b64decode(value, validate=True)
        except ValueError:
            raise ValueError("the relevancy is no base64") from None
        return value

    @field_validator("words")
    @classmethod
    def _visible(cls, value: str) -> str:
        if any(unicodedata.category(character).startswith("C") for character in value):
            raise ValueError("the words hold a control character")
        return value

    @model_validator(mode="after")
    def _inside(self) -> TextSeed:
        assert all(self.clicks())
        return self

    def clicks(self) -> tuple[Click, ...]:
        """Return the places as clicks of the same label."""
        return tuple(Click(label=self.label, negative=self.negative, **dict(place)) for place in self.places)


Drawn = Click | Scribble | Box | Mask | SpaceClick | SpaceBox
"""Seeds that say themselves where they are."""
Seed = Annotated[Drawn | TextSeed, Field(discriminator="kind")]


def drawn(seed: Seed) -> tuple[Drawn, ...]:
    """Return a seed that says where it is, or the clicks that a text was resolved to."""
    return seed.clicks() if isinstance(seed, TextSeed) else (seed,)


class Edit(Part):
    """A change to what is rendered, never to the field: deltas to the untouched weights, in the file's order."""

    kind: Literal["recolour", "remove", "extract"]
    label: LabelId
    colour: Colour = (230, 60, 40)
    """Colour that `recolour` pulls towards."""
    strength: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """0 is no change, 1 the whole of it."""


class ViewSettings(Part):
    """How the labels are shown; the same on screen and in files."""

    selected: LabelId | None = None
    """Label shown as `resonance` and `selection`; none: the first one."""
    opacity: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """Of the overlays."""
    propagation: PropagationConfig = Field(default_factory=PropagationConfig)
    """From seeds to labels."""

    @field_validator("propagation", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        strange = (
            sorted(set(value) - {field.name for field in fields(PropagationConfig)}) if type(value) is dict else []
        )
        if strange:
            raise ValueError(f"unknown setting {strange[0]!r}")
        return value

    @field_validator("propagation")
    @classmethod
    def _in_range(cls, value: PropagationConfig) -> PropagationConfig:
        for name, (low, high) in _PROPAGATION_RANGES.items():
            found = getattr(value, name)
            if name == "threshold" and found == "own":
                continue
            if not low <= found <= high:
                raise ValueError(f"{name} is {found}, expected {low:g}..{high:g}")
        return value


class Annotations(Part):
    """The content of `annotations.json`."""

    version: Literal[2] = VERSION
    labels: tuple[Label, ...] = ()
    seeds: tuple[Seed, ...] = ()
    edits: tuple[Edit, ...] = ()
    view: ViewSettings = Field(default_factory=ViewSettings)

    @model_validator(mode="before")
    @classmethod
    def _from_older(cls, content: Any) -> Any:
        return _version_2(content) if isinstance(content, dict) and content.get("version") == 1 else content

    @model_validator(mode="after")
    def _consistent(self) -> Annotations:
        ids, names = [label.id for label in self.labels], [label.name for label in self.labels]
        for kind, values in (("id", ids), ("name", names)):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"two labels have the {kind} {twice[0]}: expected every {kind} once")
        selected = () if self.view.selected is None else (self.view.selected,)
        strange = {*(part.label for part in (*self.seeds, *self.edits)), *selected} - set(ids)
        if strange:
            raise ValueError(
                f"a seed, edit or selection names label {min(strange)}, which is not in the list of labels"
            )
        return self

    def label(self, label_id: int) -> Label:
        """Return the label of an id.

        Raises:
            KeyError: there is none.
        """
        return {label.id: label for label in self.labels}[label_id]

    def seeds_of(self, label_id: int) -> tuple[Seed, ...]:
        """Return the label's seeds, positive and negative, in the order of their making."""
        return tuple(seed for seed in self.seeds if seed.label == label_id)


def _version_2(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of version 1 says: a threshold that somebody chose stays, the one that nobody did is `own`."""
    changed = {**content, "version": 2}
    view = content.get("view")
    propagation = view.get("propagation") if isinstance(view, dict) else None
    if isinstance(view, dict) and isinstance(propagation, dict):
        unchosen = ("threshold", _UNCHOSEN_THRESHOLD)
        changed["view"] = {**view, "propagation": {k: v for k, v in propagation.items() if (k, v) != unchosen}}
    return changed


def _check_inside(seed: InImage, pixels: tuple[Pixel, ...] | list[Pixel]) -> None:
    for x, y in pixels:
        if not (0 <= x < seed.width and 0 <= y < seed.height):
            raise ValueError(
                f"pixel ({x}, {y}) is outside of {seed.image}, which is {seed.width}x{seed.height} pixels "
                f"(width x height): expected x in 0..{seed.width - 1} and y in 0..{seed.height - 1}"
            )
