"""`jacobinerf query`: where in all photos is something like this pixel, this box, or this picture?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from jacobinerf_ns.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from jacobinerf_ns.run.opened import Run
    from jacobinerf_ns.tasks.feature_field.field import FeatureField
    from jacobinerf_ns.tasks.queries import PixelBox


@dataclass
class Query:
    """Find what resembles a pixel, a box or a picture in all photos of a run, by its feature field (DFF).

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
    split: Literal["train", "test", "all"] = "all"
    """Photos the run was trained on, those held out, or both."""
    threshold: float = 0.7
    """Cosine (−1..1) to the query from which on a pixel is white in the mask."""
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
        feature_field, query = self._ask(run)
        found = write_answers(run.pipeline.model, feature_field, query, planned, self.threshold)
        line = (
            f"found in {found} of {len(planned)} photos, at a cosine of {self.threshold:g} or more: {self.output_dir}"
        )
        Console().print(line, soft_wrap=True, highlight=False)
        return found

    def _check_options(self) -> None:
        if (self.image is None) == (self.patch is None):
            raise UserError("what to look for? give --image NAME with --click or --box, or --patch FILE")
        if self.patch is not None and self.click is not None:
            raise UserError("--click belongs to --image: give --box for a part of the --patch file, or neither")
        if self.image is not None and (self.click is None) == (self.box is None):
            raise UserError("--image needs either --click X Y or --box X0 Y0 X1 Y1")

    def _ask(self, run: "Run") -> "tuple[FeatureField, Tensor]":
        """Return the run's feature field, and what is asked of it."""
        from jacobinerf_ns.run.photos import list_photos
        from jacobinerf_ns.tasks.feature_field.files import load_feature_field
        from jacobinerf_ns.tasks.queries import query_of_photo, query_of_picture

        if self.patch is not None:
            extractor = run.pipeline.datamanager.config.extractor.setup(device=run.pipeline.model.device)
            feature_field = load_feature_field(run, extractor.fingerprint())
            return feature_field, query_of_picture(extractor, self.patch.absolute(), self.box)
        feature_field = load_feature_field(run)
        assert self.image is not None
        photos = list_photos(run.pipeline.datamanager, "train")
        return feature_field, query_of_photo(run.pipeline.model, feature_field, photos, self.image, self._box())

    def _box(self) -> "PixelBox":
        if self.box is not None:
            return self.box
        assert self.click is not None
        return *self.click, *self.click
