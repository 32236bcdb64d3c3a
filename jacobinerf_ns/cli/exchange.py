"""`jacobinerf import` and `jacobinerf export-seeds`: annotations from and to other labelling tools."""

from dataclasses import dataclass
from pathlib import Path

from jacobinerf_ns.annotations.formats.registry import SeedFormatName
from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.progress import PlainConsole


@dataclass
class Import:
    """Take labels made in another tool as seeds: index PNGs, COCO (run lengths or polygons), or LabelMe files."""

    load_config: Path
    """The run's config.yml."""
    source: Path
    """An index PNG, a COCO or LabelMe file, or a folder of index PNGs or LabelMe files named as the photos."""
    annotations: Path | None = None
    """Annotation file, instead of the run's own."""

    def main(self) -> Annotations:
        """Add the seeds and print what the file holds.

        Raises:
            UserError: bad input, in one line.
        """
        from jacobinerf_ns.annotations.formats.seeds_io import import_seeds
        from jacobinerf_ns.annotations.store import AnnotationStore
        from jacobinerf_ns.files.names import image_name
        from jacobinerf_ns.run.opened import read_capture

        capture = read_capture(self.load_config)
        sizes = [(height, width) for width, height in capture.sizes]
        known = {image_name(capture.filenames, i): size for i, size in enumerate(sizes)}
        store = AnnotationStore(self.annotations or capture.annotations)
        before = len(store.snapshot()[1].seeds)
        after = store.change(lambda current: import_seeds(current, self.source, store.folder, known))
        line = f"{len(after.seeds) - before} seeds added, {len(after.labels)} labels: {store.path}"
        PlainConsole().print(line, soft_wrap=True, highlight=False)
        return after


@dataclass
class ExportSeeds:
    """Write the positive seeds of an annotation file as label maps for another tool."""

    load_config: Path
    """The run's config.yml."""
    output: Path
    """The file for `coco`, the folder for the others."""
    format: SeedFormatName = "coco"
    """Index PNGs, one COCO file of run lengths, or LabelMe files."""
    annotations: Path | None = None
    """Annotation file, instead of the run's own."""
    overwrite: bool = False
    """Replace files that are there."""

    def main(self) -> list[Path]:
        """Write the files and print how many.

        Raises:
            UserError: bad input, in one line.
        """
        from jacobinerf_ns.annotations.formats.seeds_io import export_seeds
        from jacobinerf_ns.annotations.rasterise import rasterise
        from jacobinerf_ns.annotations.store import read_annotations
        from jacobinerf_ns.run.opened import read_capture

        path = self.annotations or read_capture(self.load_config).annotations
        if not path.is_file():
            raise UserError(f"no such file: {path}: click first (jacobinerf annotate)")
        written = export_seeds(
            read_annotations(path),
            lambda seed: rasterise(seed, path.parent),
            self.output,
            self.format,
            overwrite=self.overwrite,
        )
        PlainConsole().print(f"{len(written)} files: {self.output}", soft_wrap=True, highlight=False)
        return written
