"""`jacobinerf annotate`: shows and changes an annotation file without a viewer."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table
from rich.text import Text

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.rasterise import rasterise
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, Colour, Edit, Label, Mask, Scribble, Seed
from jacobinerf_ns.annotations.store import AnnotationStore, adopt_mask, foreign_mask, read_annotations
from jacobinerf_ns.cli.teachers import OwnTeacher, Speaker, set_up
from jacobinerf_ns.errors import UserError, plain_errors
from jacobinerf_ns.files.names import find_image, image_name
from jacobinerf_ns.progress import PlainConsole

if TYPE_CHECKING:
    from jacobinerf_ns.run.opened import Capture

SEED_OPTIONS = ("--click", "--box", "--scribble", "--mask")
LABEL_OPTIONS = ("--rename", "--delete", "--grow", "--edit")
"""Changes that need a label."""
LAST_OPTIONS = ("--remove-last-seed", "--remove-last-edit")
"""Changes that may name one."""

Changer = Callable[[Annotations], Annotations]


@dataclass
class Annotate:
    """Show the annotations of a run, or change one thing: a label, its seeds, an edit, or the settings.

    Without a change it prints the labels, how many seeds each has, the edits, and where the file is.
    """

    load_config: Path | None = None
    """The run's config.yml. Its annotations lie beside it; seeds in images need it, to know the images."""
    file: Path | None = None
    """Annotation file, instead of the run's own."""
    label: str | None = None
    """Name of the label that is changed; alone or with a seed, it is made when it is new."""
    colour: tuple[int, int, int] | None = None
    """Red, green and blue (0..255) of the label, or what `--edit recolour` pulls towards."""
    rename: str | None = None
    """New name of the label."""
    delete: bool = False
    """Remove the label with its seeds and edits."""
    grow: int | None = None
    """Select a label so many levels larger than its natural size, or below 0 smaller; what there is no level for is the
    last one."""
    image: str | None = None
    """Training image that the seed is in: its file name, with parent folders where several have it."""
    click: Annotated[list[tuple[int, int]], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Pixel, as column and row counted from the top left in the original image; may be given several times."""
    box: tuple[int, int, int, int] | None = None
    """Two opposite corners x0 y0 x1 y1 of a rectangle, both included."""
    scribble: tuple[int, ...] = ()
    """Line through the pixels x0 y0 x1 y1 and so on."""
    radius: int = 0
    """Pixels on each side of a scribble."""
    mask: Path | None = None
    """Index PNG of the image's size; it is copied beside the annotation file."""
    value: int = 1
    """Index of the mask's pixels that make the seed."""
    text: str | None = None
    """Words that say what the label is: where they fit best in the training photos becomes its seed. Needs a teacher
    that knows words, the run's own or one named at the end of the command. What is not there changes nothing."""
    against: tuple[str, ...] = ()
    """Words that the text must fit better than; none are object, things, stuff and texture."""
    negative: bool = False
    """The seed says what is not of the label."""
    edit: Literal["recolour", "remove", "extract"] | None = None
    """Add an edit of the label to what is rendered."""
    strength: float = 1.0
    """Of the edit: 0 is no change, 1 the whole of it."""
    remove_last_seed: bool = False
    """Take back the seed made last, of the label if one is named."""
    remove_last_edit: bool = False
    """Take back the edit made last, of the label if one is named."""
    merge: Path | None = None
    """Annotation file whose labels, seeds and edits are added; labels of the same name become one."""
    select: str | None = None
    """Name of the label shown as `resonance` and `selection`."""
    threshold: float | Literal["own"] | None = None
    """Response (0..1) from which on a pixel belongs to a selection, the same for all labels; `own`: each label's."""
    strictness: float | None = None
    """Moves labels' thresholds, -1..1: 0 is where they are, -1 selects all, 1 only what responds fully."""
    connected: bool | None = None
    """Select only what hangs together with a label's clicks; `--no-connected` selects all that is alike."""
    space: Literal["2d", "3d"] | None = None
    """Take responses on rendered pixels (2d), or per sample in space (3d)."""
    void_below: float | None = None
    """Pixels of less confidence (0..1) than this get no label."""
    refine: int | None = None
    """Rounds in which what stands for a label is refined on the scene (J-NeRF+: 10, together with `--smooth`)."""
    smooth: float | None = None
    """Share (0..1) of a response to take from the surface around a pixel (J-NeRF+: 0.8)."""
    teacher: Speaker = field(default_factory=OwnTeacher)
    """What understands `--text`."""

    def main(self) -> Annotations:
        """Make the change, if one is asked for, and print what the file holds.

        Raises:
            UserError: bad input, in one line.
        """
        self._check_options()
        capture, path = None, self.file
        if self.load_config is not None:
            from jacobinerf_ns.run.opened import read_capture

            capture = read_capture(self.load_config)
            path = self.file or capture.annotations
        if path is None:
            raise UserError("no annotations named: give --load-config RUN/config.yml, or --file annotations.json")
        store = AnnotationStore(path)
        change = self._change(capture, store.path.parent)
        annotations = store.change(change) if change else store.snapshot()[1]
        _show(annotations, store.path)
        return annotations

    def _asked(self) -> list[str]:
        """Return the changes asked for, by their options."""
        seeds: dict[str, Any] = {"--click": self.click, "--box": self.box, "--scribble": self.scribble}
        seeds |= {"--mask": self.mask, "--text": self.text is not None}
        settings = self._settings()
        others = {
            "--rename": self.rename is not None,
            "--delete": self.delete,
            "--grow": self.grow is not None,
            "--edit": self.edit,
            "--remove-last-seed": self.remove_last_seed,
            "--remove-last-edit": self.remove_last_edit,
            "--merge": self.merge,
            "--select": self.select is not None,
            "a setting of propagation": settings,
        }
        return [option for option, value in {**seeds, **others}.items() if value]

    def _check_options(self) -> None:
        asked = self._asked()
        if len(asked) > 1:
            raise UserError(f"one change at a time: found {asked[0]} and {asked[1]}: give them in two commands")
        change = asked[0] if asked else ""
        makes_seed, says = change in SEED_OPTIONS, change == "--text"
        if (makes_seed or says or change in LABEL_OPTIONS) and self.label is None:
            raise UserError(f"{change} is about a label: add --label NAME")
        if self.label is not None and change not in ("", "--text", *SEED_OPTIONS, *LABEL_OPTIONS, *LAST_OPTIONS):
            raise UserError(f"{change} is not about one label: leave --label out")
        if makes_seed and self.image is None:
            raise UserError(f"{change} is in an image: add --image NAME")
        if (makes_seed or says) and self.load_config is None:
            raise UserError(f"{change} needs --load-config too: the run's capture says which images there are")
        if not makes_seed and (self.image is not None or (self.negative and not says)):
            option = "--image" if self.image is not None else "--negative"
            raise UserError(f"{option} belongs to a seed: add --click, --box, --scribble or --mask")
        if (self.against or not isinstance(self.teacher, OwnTeacher)) and not says:
            raise UserError("--against and a teacher belong to --text: add --text 'WORDS'")
        if self.colour is not None and (self.label is None or change not in ("", "--edit", "--text", *SEED_OPTIONS)):
            raise UserError("--colour belongs to --label NAME, a new seed's label or an edit")
        if len(self.scribble) % 2:
            raise UserError(f"--scribble has {len(self.scribble)} numbers: expected pairs x y")

    def _change(self, capture: "Capture | None", folder: Path) -> Changer | None:
        """Return what is to be done to the annotations, whose file lies in `folder`; none when nothing is asked for."""
        asked = self._asked()
        if not asked:
            return self._set_label if self.label is not None else None
        if asked[0] in SEED_OPTIONS:
            assert capture is not None
            return self._seed_change(capture, folder)
        if self.text is not None:
            return self._text_change(self.text)
        if self.merge is not None:
            other = _with_masks_at(_read_existing(self.merge), self.merge.absolute().parent, folder)
            return lambda annotations: changes.merge(annotations, other)
        return {
            "--rename": self._rename,
            "--delete": lambda annotations: changes.remove_label(annotations, self._named(annotations).id),
            "--grow": lambda annotations: changes.set_grow(annotations, self._named(annotations).id, self.grow or 0),
            "--edit": self._add_edit,
            "--remove-last-seed": self._remove_last_seed,
            "--remove-last-edit": self._remove_last_edit,
            "--select": lambda annotations: changes.select(
                annotations, changes.label_named(annotations, self.select or "").id
            ),
        }.get(asked[0], self._set)

    def _named(self, annotations: Annotations) -> Label:
        assert self.label is not None
        return changes.label_named(annotations, self.label)

    def _set_label(self, annotations: Annotations) -> Annotations:
        """Make the label if it is new, and give it the colour if one is named."""
        assert self.label is not None
        known = next((label for label in annotations.labels if label.name == self.label.strip()), None)
        if known is None:
            return changes.add_label(annotations, self.label, self.colour)[0]
        if self.colour is None:
            return annotations
        return changes.recolour_label(annotations, known.id, self.colour)

    def _rename(self, annotations: Annotations) -> Annotations:
        return changes.rename_label(annotations, self._named(annotations).id, self.rename or "")

    def _add_edit(self, annotations: Annotations) -> Annotations:
        assert self.edit is not None
        label = self._named(annotations).id
        given = {} if self.colour is None else {"colour": self.colour}
        with plain_errors("edit"):
            edit = Edit(kind=self.edit, label=label, strength=self.strength, **given)
        return changes.add_edit(annotations, edit)

    def _remove_last_seed(self, annotations: Annotations) -> Annotations:
        return changes.remove_seed(annotations, self._last(annotations, annotations.seeds, "seed"))

    def _remove_last_edit(self, annotations: Annotations) -> Annotations:
        return changes.remove_edit(annotations, self._last(annotations, annotations.edits, "edit"))

    def _last(self, annotations: Annotations, parts: tuple[Seed, ...] | tuple[Edit, ...], kind: str) -> int:
        wanted = None if self.label is None else self._named(annotations).id
        positions = [index for index, part in enumerate(parts) if wanted in (None, part.label)]
        if not positions:
            raise UserError(f"there is no {kind} to remove" + (f" of label {self.label!r}" if self.label else ""))
        return positions[-1]

    def _set(self, annotations: Annotations) -> Annotations:
        return changes.set_view(annotations, propagation=replace(annotations.view.propagation, **self._settings()))

    def _settings(self) -> dict[str, Any]:
        """Return the settings of propagation that are given."""
        names = ("threshold", "strictness", "connected", "space", "void_below", "refine", "smooth")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _seed_change(self, capture: "Capture", folder: Path) -> Changer:
        assert self.image is not None
        index = find_image(self.image, capture.filenames)
        width, height = capture.sizes[index]
        # The label's id is known only when the change is made.
        common = {"image": image_name(capture.filenames, index), "width": width, "height": height}
        common |= {"label": 1, "negative": self.negative}
        with plain_errors():
            seeds = self._seeds(common)
        if self.mask is not None:
            # Checked where it lies, before anything is copied.
            rasterise(seeds[0], self.mask.absolute().parent)
            seeds = [seeds[0].model_copy(update={"file": adopt_mask(self.mask, folder)})]

        def change(annotations: Annotations) -> Annotations:
            annotations = self._set_label(annotations)
            label = self._named(annotations).id
            for seed in seeds:
                annotations = changes.add_seed(annotations, seed.model_copy(update={"label": label}))
            return annotations

        return change

    def _text_change(self, text: str) -> Changer | None:
        """Look for the text, and say what was found; nothing is to be done where nothing like it is there."""
        from jacobinerf_ns.features.words import checked
        from jacobinerf_ns.run.opened import open_run
        from jacobinerf_ns.tasks.words import ask

        words, against = checked(text), [checked(word) for word in self.against]
        assert self.load_config is not None
        run = open_run(self.load_config)
        answer = ask(run, words, against, set_up(self.teacher, run))
        PlainConsole().print(Text(str(answer)), soft_wrap=True)
        if not answer.places:
            return None

        def change(annotations: Annotations) -> Annotations:
            annotations = self._set_label(annotations)
            return changes.add_seed(annotations, answer.seed(self._named(annotations).id, self.negative))

        return change

    def _seeds(self, common: dict[str, Any]) -> list[Click] | list[Box] | list[Scribble] | list[Mask]:
        """Return the seeds asked for; `common` holds what every seed in an image has."""
        if self.click:
            return [Click(pixel=pixel, **common) for pixel in self.click]
        if self.box is not None:
            return [Box(corner=self.box[:2], opposite=self.box[2:], **common)]
        if self.scribble:
            points = tuple(zip(self.scribble[::2], self.scribble[1::2], strict=True))
            return [Scribble(points=points, radius=self.radius, **common)]
        assert self.mask is not None
        if not self.mask.is_file():
            raise UserError(f"no such file: {self.mask}: give --mask an index PNG")
        return [Mask(file=self.mask.name, value=self.value, **common)]


def _read_existing(path: Path) -> Annotations:
    if not path.is_file():
        raise UserError(f"no such file: {path}: give --merge an annotation file")
    return read_annotations(path)


def _with_masks_at(annotations: Annotations, source: Path, target: Path) -> Annotations:
    """Annotations from a file in `source`, with their mask files copied beside a file in `target`."""
    if source.resolve() == target.resolve():
        return annotations
    seeds = tuple(
        seed.model_copy(update={"file": adopt_mask(foreign_mask(source, seed), target)})
        if isinstance(seed, Mask)
        else seed
        for seed in annotations.seeds
    )
    return annotations.model_copy(update={"seeds": seeds})


def _show(annotations: Annotations, path: Path) -> None:
    console = PlainConsole()
    table = Table("id", "label", "colour", "positive seeds", "negative seeds")
    for label in annotations.labels:
        negative = sum(seed.negative for seed in annotations.seeds_of(label.id))
        positive = len(annotations.seeds_of(label.id)) - negative
        said = ["selected"] * (label.id == annotations.view.selected) + _size(label)
        name = Text(label.name + (f" ({', '.join(said)})" if said else ""))
        table.add_row(str(label.id), name, _swatch(label.colour), str(positive), str(negative))
    console.print(table)
    for number, edit in enumerate(annotations.edits, start=1):
        line = Text(f"edit {number}: {edit.kind} {annotations.label(edit.label).name}, strength {edit.strength:g} ")
        console.print(line.append_text(_swatch(edit.colour)) if edit.kind == "recolour" else line)
    settings = annotations.view.propagation
    threshold = "own" if settings.threshold == "own" else f"{settings.threshold:g}"
    moved = f" moved by {settings.strictness:+g}" if settings.strictness else ""
    pieces = "what hangs together" if settings.connected else "all that is alike"
    line = (
        f"threshold {threshold}{moved}, {pieces}, space {settings.space}, void below {settings.void_below:g}, "
        f"refine {settings.refine}, smooth {settings.smooth:g}"
    )
    console.print(line, highlight=False)
    console.print(Text(str(path)), soft_wrap=True)


def _size(label: Label) -> list[str]:
    """Return how a label's selection differs from its natural size, if it does."""
    return [f"{abs(label.grow)} {'larger' if label.grow > 0 else 'smaller'}"] if label.grow else []


def _swatch(colour: Colour) -> Text:
    red, green, blue = colour
    return Text("██ ", style=f"rgb({red},{green},{blue})").append(f"{red} {green} {blue}", style="default")
