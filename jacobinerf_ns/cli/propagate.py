"""`jacobinerf propagate`: label maps of all photos, as files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jacobinerf_ns.annotations.formats.registry import FormatName

if TYPE_CHECKING:
    from jacobinerf_ns.tasks.masks import Propagated

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass
class Propagate:
    """Turn the labels of a run into label maps of its photos: index PNGs, one COCO file, or LabelMe files.

    After an interruption the same command goes on with the photos that are missing.
    """

    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """Folder for the label maps, and for classes.json, which names their ids."""
    annotations: Path | None = None
    """Annotation file, instead of the run's own."""
    split: Literal["train", "test", "all"] = "all"
    """Photos the run was trained on, those held out, or both."""
    format: FormatName = "png"
    """An index PNG per photo, one annotations.coco.json of run lengths (CVAT) or of outlines (Label Studio, which reads
    no run lengths; the same pixels), or a LabelMe file per photo."""
    labels: tuple[str, ...] = ()
    """Names of the labels to write; none: all. The others still compete for pixels, and theirs become 0."""
    refine: int | None = None
    """Rounds of refining what stands for a label on the scene itself; None is the annotation file's."""
    smooth: float | None = None
    """Share (0..1) of a pixel's response that comes from the nearest surfaces; None is the annotation file's."""
    space: Literal["2d", "3d"] | None = None
    """Take responses on rendered pixels (2d) or per sample in space (3d); None is the annotation file's."""
    void_below: float | None = None
    """Pixels of less confidence (0..1) than this get no label, id 0; None is the annotation file's."""
    full_resolution: bool = False
    """Render at the photos' original size. Otherwise label maps are rendered at the training resolution, and each pixel
    of the photo gets the id that its centre lies in."""
    overlays: bool = False
    """Also write the photos with the labels' colours over them, into overlays/."""
    overwrite: bool = False
    """Make all files anew, in the place of what is there."""

    def main(self) -> "Propagated":
        """Writes the files, and prints each label's share of the pixels. Errors: `UserError`."""
        from jacobinerf_ns.tasks.masks import PropagateSettings, propagate

        settings = PropagateSettings(
            split=self.split,
            format=self.format,
            labels=self.labels,
            refine=self.refine,
            smooth=self.smooth,
            space=self.space,
            void_below=self.void_below,
            full_resolution=self.full_resolution,
            overlays=self.overlays,
            overwrite=self.overwrite,
        )
        try:
            result = propagate(self.load_config, self.output_dir, settings, self.annotations)
        except KeyboardInterrupt:
            print("stopped: what is done is kept, and the same command goes on from there", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        _show(result)
        return result


def _show(result: "Propagated") -> None:
    console = Console()
    table = Table("id", "label", "share of pixels", "photos")
    names = [(label.id, label.name) for label in result.labels]
    for label_id, name in [*names, (0, "none")]:
        table.add_row(str(label_id), Text(name), f"{result.share(label_id):.1%}", str(result.photos[label_id]))
    console.print(table)
    total = result.rendered + result.there_already
    line = f"{total} photos labelled"
    if result.there_already:
        line += f", {result.there_already} of {total} were there already"
    console.print(Text(f"{line}: {result.folder}"), soft_wrap=True)
    if result.unopposed:
        hint = "--void-below 0.5 leaves out those below its threshold"
        console.print(Text(f"The only label took every pixel that responds at all: {hint}."), soft_wrap=True)
