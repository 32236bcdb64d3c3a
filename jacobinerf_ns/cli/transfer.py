"""`jacobinerf transfer`: labels of one capture, found in another."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table
from rich.text import Text

from jacobinerf_ns.cli.teachers import OwnTeacher
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.progress import PlainConsole

if TYPE_CHECKING:
    from jacobinerf_ns.run.opened import Run
    from jacobinerf_ns.tasks.transfer.files import TransferFiles
    from jacobinerf_ns.tasks.transfer.transfer import Transferred
    from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig


Teacher = (
    Annotated[OwnTeacher, tyro.conf.subcommand("own", prefix_name=False)]
    | Annotated[DinoConfig, tyro.conf.subcommand("dino", prefix_name=False)]
    | Annotated[HandcraftedConfig, tyro.conf.subcommand("handcrafted", prefix_name=False)]
    | Annotated[OracleConfig, tyro.conf.subcommand("oracle", prefix_name=False)]
)


@dataclass
class Transfer:
    """Find the labels of one run in the capture of another, by what a teacher that both share says of their photos.

    Each label's clearest matches become clicks in the other capture, which its own field then propagates.
    """

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """config.yml of the run whose annotations are transferred, or its folder."""
    target: Annotated[Path, tyro.conf.arg(name="to")]
    """config.yml of the run that gets them, or its folder."""
    output_dir: Path | None = None
    """Folder for annotations_from_NAME.json and correspondence_from_NAME.png, with NAME of the first capture; None is
    the second run's own."""
    annotations: Path | None = None
    """Annotation file to transfer, instead of the first run's own."""
    merge: bool = False
    """Add labels and clicks to the second run's own annotations instead of writing a file of their own; all that is
    there stays."""
    clicks: int = 8
    """Clicks per label in the second capture."""
    prototypes: int = 8
    """Teacher features that stand for a label, at most (k-means of those of its seeds)."""
    min_confidence: float = 0.5
    """Labels of less confidence (0..1) are reported and left out."""
    teacher: tyro.conf.OmitSubcommandPrefixes[Teacher] = field(default_factory=OwnTeacher)
    """Another teacher than the runs' own, which then looks at the photos of both now."""

    def main(self) -> "Transferred":
        """Write the files, and print what was found.

        Raises:
            UserError: bad input, in one line.
        """
        from jacobinerf_ns.annotations.store import read_annotations
        from jacobinerf_ns.run.opened import annotations_path
        from jacobinerf_ns.tasks.transfer.files import plan_transfer, write_transfer
        from jacobinerf_ns.tasks.transfer.side import Side
        from jacobinerf_ns.tasks.transfer.transfer import TransferSettings, transfer

        settings = TransferSettings(self.clicks, self.prototypes, self.min_confidence)
        own = isinstance(self.teacher, OwnTeacher)
        source = Side(self._open(self.source), own)
        path = self.annotations or annotations_path(source.run.config.pipeline, source.run.folder / "config.yml")
        annotations = read_annotations(path)
        target = Side(self._open(self.target), own)
        files = plan_transfer(source, target, self.output_dir, self.merge)
        transferred = transfer(source, target, annotations, path.absolute().parent, settings)
        write_transfer(files, source, target, transferred)
        _show(transferred, files, self.min_confidence)
        eyes = ", ".join(f"{side.name}: {side.source_of_features}" for side in (source, target))
        PlainConsole().print(Text(f"Features by {eyes}"), soft_wrap=True)
        return transferred

    def _open(self, path: Path) -> "Run":
        from jacobinerf_ns.run.opened import open_run

        run = open_run(path / "config.yml" if path.is_dir() else path, change=self._change)
        run.pipeline.eval()
        return run

    def _change(self, config: "JacobiNeRFTrainerConfig") -> None:
        data = config.pipeline.datamanager
        if not isinstance(self.teacher, OwnTeacher):
            data.extractor = self.teacher


def _show(transferred: "Transferred", files: "TransferFiles", least: float) -> None:
    console = PlainConsole()
    table = Table("label", "confidence", "margin", "returned", "clicks")
    for part in transferred.found:
        numbers = (f"{part.confidence:.2f}", f"{part.margin:.2f}", f"{part.returned:.0%}")
        count = str(len(part.pixels)) if len(part.pixels) else "left out"
        table.add_row(Text(part.label.name), *numbers, count)
    console.print(table)
    found, total = len(transferred.annotations.labels), len(transferred.found)
    where = f": {files.annotations}" if found else ", so no annotations were written"
    line = f"{found} of {total} labels found with a confidence of {least:g} or more{where}"
    console.print(Text(f"{line}\n{files.picture}"), soft_wrap=True)
