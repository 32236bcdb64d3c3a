"""`jacobinerf query`: where in all photos is something like this pixel, this box, this picture, or these words?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from jacobinerf_ns.errors import UserError, plain_errors
from jacobinerf_ns.progress import PlainConsole

if TYPE_CHECKING:
    import numpy as np
    from nerfstudio.cameras.cameras import Cameras

    from jacobinerf_ns.annotations.schema import Edit, Seed
    from jacobinerf_ns.run.opened import Run
    from jacobinerf_ns.tasks.queries import Found, PixelBox

    Show = Callable[[Cameras], np.ndarray]

SIMILAR, RELEVANT = 0.7, 0.5
"""Thresholds: of cosines, and of a text that is as likely as the likeliest word that it is compared with."""


@dataclass
class Query:
    """Find what resembles a pixel, a box, a picture or words in all photos of a run, by its feature field (DFF, LERF).

    Needs `jacobinerf distil` once. Writes heat_maps/NAME.png and masks/NAME.png, named and sized as the photos; on
    request it edits what was found, or makes it a label.
    """

    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """Folder for the heat maps and masks."""
    image: str | None = None
    """Training image that --click or --box is in: its file name, with parent folders where several have it."""
    click: tuple[int, int] | None = None
    """Pixel x y, as column and row counted from the top left in the original image."""
    box: tuple[int, int, int, int] | None = None
    """Two opposite corners x0 y0 x1 y1 of a rectangle in --image or --patch, both included."""
    patch: Path | None = None
    """Any image file. The run's teacher looks at it, whole or at its --box."""
    text: str | None = None
    """Words, such as "a wooden chair"; the run's teacher has to know words (clip, or precomputed with --texts)."""
    against: tuple[str, ...] = ()
    """Words that --text is compared with; none are object, things, stuff and texture."""
    split: Literal["train", "test", "all"] = "all"
    """Photos the run was trained on, those held out, or both."""
    threshold: float | None = None
    """Cosine (−1..1) to the query from which on a pixel is white in the mask, 0.7 where it is left out; of --text the
    relevancy (0..1), 0.5 where it is left out."""
    label: str | None = None
    """Keep what was found as a label of this name in the run's annotations: its surest places in the training photos
    become seeds of it, and from there on it is a label as any other."""
    edit: Literal["recolour", "remove", "extract"] | None = None
    """Also write edited/NAME.png: the photo's view rendered with what was found in another colour, without it, or with
    it alone. With --label the edit is kept too."""
    colour: tuple[int, int, int] | None = None
    """Red, green and blue (0..255) that --edit recolour pulls towards."""
    overwrite: bool = False
    """Replace files of an earlier query."""

    def main(self) -> int:
        """Write the files; give the number of photos in which something was found.

        Raises:
            UserError: bad input, in one line.
        """
        self._check_options()
        from jacobinerf_ns.run.opened import open_run
        from jacobinerf_ns.run.photos import list_photos
        from jacobinerf_ns.tasks.queries import plan_answers, write_answers

        edit = self._edit()
        run = open_run(self.load_config)
        run.pipeline.eval()
        photos = list_photos(run.pipeline.datamanager, self.split)
        planned = plan_answers(photos, self.output_dir.absolute(), self.overwrite, edit is not None)
        found = self._ask(run) if self.text is None else self._ask_in_words(run, self.text)
        if found is None:
            return 0
        edited = None if edit is None else self._rendering(run, found.seeds, edit)
        count = write_answers(found.look, planned, self._threshold, edited)
        measure = "cosine" if self.text is None else "relevancy"
        line = f"found in {count} of {len(planned)} photos, at a {measure} of {self._threshold:g} or more: "
        PlainConsole().print(f"{line}{self.output_dir}", soft_wrap=True, highlight=False)
        if self.label is not None:
            self._keep(run, self.label, found.seeds, edit)
        return count

    @property
    def _threshold(self) -> float:
        usual = SIMILAR if self.text is None else RELEVANT
        return usual if self.threshold is None else self.threshold

    def _edit(self) -> "Edit | None":
        from jacobinerf_ns.annotations.schema import Edit
        from jacobinerf_ns.tasks.queries import SOME_LABEL

        if self.edit is None:
            return None
        edit = Edit(kind=self.edit, label=SOME_LABEL)
        with plain_errors("edit"):
            return edit if self.colour is None else Edit(**{**dict(edit), "colour": self.colour})

    def _rendering(self, run: "Run", seeds: "tuple[Seed, ...]", edit: "Edit") -> "Show":
        """Return what renders a view with the edit of what was found, and of nothing else."""
        from jacobinerf_ns.annotations.schema import Annotations
        from jacobinerf_ns.tasks.queries import edited_view, with_label

        snapshot = run.fit(with_label(Annotations(), "query", seeds, edit)).snapshot
        return lambda camera: edited_view(run.pipeline.model, camera, snapshot)

    def _keep(self, run: "Run", label: str, seeds: "tuple[Seed, ...]", edit: "Edit | None") -> None:
        from jacobinerf_ns.annotations.store import AnnotationStore
        from jacobinerf_ns.tasks.queries import with_label

        store = AnnotationStore(run.annotations_file)
        store.change(lambda annotations: with_label(annotations, label, seeds, edit))
        PlainConsole().print(Text(f"label {label!r} stands on it now: {store.path}"), soft_wrap=True)

    def _check_options(self) -> None:
        if sum(asked is not None for asked in (self.image, self.patch, self.text)) != 1:
            raise UserError(
                "what to look for? give --image NAME with --click or --box, or --patch FILE, or --text WORDS"
            )
        if self.text is not None:
            from jacobinerf_ns.features.words import checked

            for words in (self.text, *self.against):
                checked(words)
            if self.click is not None or self.box is not None:
                raise UserError("--click and --box belong to --image or --patch: leave them out with --text")
        elif self.against:
            raise UserError("--against belongs to --text: add --text WORDS")
        if self.patch is not None and self.click is not None:
            raise UserError("--click belongs to --image: give --box for a part of the --patch file, or neither")
        if self.image is not None and (self.click is None) == (self.box is None):
            raise UserError("--image needs either --click X Y or --box X0 Y0 X1 Y1")
        if self.colour is not None and self.edit != "recolour":
            raise UserError("--colour belongs to --edit recolour")
        if self.label is not None:
            from jacobinerf_ns.annotations.schema import Label

            with plain_errors("label"):
                Label(id=1, name=self.label, colour=(0, 0, 0))

    def _ask(self, run: "Run") -> "Found":
        """Look for a pixel, box or picture: views answer with their cosine to it.

        Raises:
            UserError: a label is asked for, and nothing in the training photos is alike.
        """
        from jacobinerf_ns.run.photos import list_photos
        from jacobinerf_ns.tasks.feature_field.files import load_feature_field
        from jacobinerf_ns.tasks.queries import Found, clicks_of, query_of_photo, query_of_picture, view_similarity
        from jacobinerf_ns.tasks.words import distilled

        model = run.pipeline.model
        if self.patch is not None:
            extractor = run.pipeline.datamanager.config.extractor.setup(device=run.pipeline.model.device)
            feature_field = load_feature_field(run, extractor.fingerprint())
            query = query_of_picture(extractor, self.patch.absolute(), self.box)
        else:
            feature_field = load_feature_field(run)
            assert self.image is not None
            photos = list_photos(run.pipeline.datamanager, "train")
            query = query_of_photo(model, feature_field, photos, self.image, self._box())
        seeds = ()
        if self.label is not None or self.edit is not None:
            words = run.pipeline.words
            seeds = clicks_of(words.likest(query, distilled(run, feature_field), self._threshold))
        return Found(lambda camera: view_similarity(model, feature_field, camera, query), seeds)

    def _ask_in_words(self, run: "Run", text: str) -> "Found | None":
        """Look for a text: views answer with its relevancy; None where nothing like it is there, which is said."""
        from jacobinerf_ns.tasks.feature_field.files import load_feature_field
        from jacobinerf_ns.tasks.queries import SOME_LABEL, Found
        from jacobinerf_ns.tasks.words import distilled, view_relevancy

        model = run.pipeline.model
        teacher = run.pipeline.words.own_teacher()
        feature_field = load_feature_field(run, teacher.fingerprint())
        answer = run.pipeline.words.find(text, self.against, teacher, distilled(run, feature_field))
        PlainConsole().print(Text(str(answer)), soft_wrap=True)
        if not answer.places:
            return None
        vectors = teacher.encode([answer.words, *answer.against])
        seeds = (answer.seed(SOME_LABEL),)
        return Found(lambda camera: view_relevancy(model, feature_field, camera, vectors[0], vectors[1:]), seeds)

    def _box(self) -> "PixelBox":
        if self.box is not None:
            return self.box
        assert self.click is not None
        return *self.click, *self.click
