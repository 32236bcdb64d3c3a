"""`jacobinerf query`: where in all photos is something like this pixel, this box, this picture, or these words?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.progress import PlainConsole

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from torch import Tensor

    from jacobinerf_ns.run.opened import Run
    from jacobinerf_ns.tasks.queries import PixelBox

    Look = Callable[[Cameras], Tensor]

SIMILAR, RELEVANT = 0.7, 0.5
"""Thresholds: of cosines, and of a text that is as likely as the likeliest word that it is compared with."""


@dataclass
class Query:
    """Find what resembles a pixel, a box, a picture or words in all photos of a run, by its feature field (DFF, LERF).

    Needs `jacobinerf distil` once. Writes heat_maps/NAME.png and masks/NAME.png, named and sized as the photos.
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

        run = open_run(self.load_config)
        run.pipeline.eval()
        photos = list_photos(run.pipeline.datamanager, self.split)
        planned = plan_answers(photos, self.output_dir.absolute(), self.overwrite)
        look = self._ask(run) if self.text is None else self._ask_in_words(run, self.text)
        if look is None:
            return 0
        measure, usual = ("cosine", SIMILAR) if self.text is None else ("relevancy", RELEVANT)
        threshold = usual if self.threshold is None else self.threshold
        found = write_answers(look, planned, threshold)
        line = f"found in {found} of {len(planned)} photos, at a {measure} of {threshold:g} or more: {self.output_dir}"
        PlainConsole().print(line, soft_wrap=True, highlight=False)
        return found

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

    def _ask(self, run: "Run") -> "Look":
        """Return what gives the cosine of a view to a pixel, box or picture."""
        from jacobinerf_ns.run.photos import list_photos
        from jacobinerf_ns.tasks.feature_field.files import load_feature_field
        from jacobinerf_ns.tasks.queries import query_of_photo, query_of_picture, view_similarity

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
        return lambda camera: view_similarity(model, feature_field, camera, query)

    def _ask_in_words(self, run: "Run", text: str) -> "Look | None":
        """Return what gives the relevancy of a view to a text; None where nothing like it is there, which is said."""
        from jacobinerf_ns.run.words import find_words, own_teacher
        from jacobinerf_ns.tasks.feature_field.files import load_feature_field
        from jacobinerf_ns.tasks.words import distilled, view_relevancy

        model = run.pipeline.model
        teacher = own_teacher(run.pipeline)
        feature_field = load_feature_field(run, teacher.fingerprint())
        photos, sampler = run.photos("train"), distilled(run, feature_field)
        answer = find_words(run.pipeline, photos, text, self.against, teacher, sampler)
        PlainConsole().print(Text(str(answer)), soft_wrap=True)
        if not answer.places:
            return None
        vectors = teacher.encode([answer.words, *answer.against])
        return lambda camera: view_relevancy(model, feature_field, camera, vectors[0], vectors[1:])

    def _box(self) -> "PixelBox":
        if self.box is not None:
            return self.box
        assert self.click is not None
        return *self.click, *self.click
