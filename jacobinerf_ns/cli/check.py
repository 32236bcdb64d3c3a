"""`jacobinerf check`: what a capture holds, what is odd about it, and what to do, before training finds out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.progress import PlainConsole

if TYPE_CHECKING:
    from nerfstudio.data.dataparsers.base_dataparser import DataParser

    from jacobinerf_ns.dataparsers.capture_report import Line


@dataclass
class Check:
    """Read everything of a capture that a training would read, and say what is there and what is odd.

    Exit code 0, or 2 with one line where training would refuse the capture.
    """

    data: Path | None = None
    """Folder of the capture (or its transforms.json)."""
    load_config: Path | None = None
    """The config.yml of a run, instead: its capture is read with its options."""
    dataparser: Literal["jacobinerf-data", "replica-data", "scannet-labels"] = "jacobinerf-data"
    """How the capture is read."""
    downscale_factor: int | None = None
    """Image sizes are divided by this whole number; give the one that training is given."""
    label_dir: Path | None = None
    """Folder with label maps, as training is given it."""

    def main(self) -> "list[Line]":
        """Read the capture and print the table.

        Raises:
            UserError: training would refuse the capture.
        """
        from jacobinerf_ns.compat.console import quiet_nerfstudio
        from jacobinerf_ns.dataparsers.capture_report import report

        parser, label_dir = self._parser()
        with quiet_nerfstudio():
            lines = report(parser, label_dir)
        _show(lines)
        return lines

    def _parser(self) -> "tuple[DataParser, Path | None]":
        if (self.data is None) == (self.load_config is None):
            raise UserError("what is to be checked? give --data CAPTURE, or --load-config RUN/config.yml")
        if self.load_config is not None:
            from jacobinerf_ns.run.opened import parser_of

            if self.downscale_factor is not None or self.label_dir is not None:
                raise UserError("--downscale-factor and --label-dir are the run's own: leave them out")
            return parser_of(self.load_config)
        from jacobinerf_ns.dataparsers.jacobinerf_data import jacobinerf_data
        from jacobinerf_ns.dataparsers.replica_data import replica_data
        from jacobinerf_ns.dataparsers.scannet_labels import scannet_labels

        known = {"jacobinerf-data": jacobinerf_data, "replica-data": replica_data, "scannet-labels": scannet_labels}
        assert self.data is not None
        changed = type(known[self.dataparser].config)(data=self.data)
        setattr(changed, "downscale_factor", self.downscale_factor)  # noqa: B010 (a field of all three)
        return changed.setup(), self.label_dir


def _show(lines: "list[Line]") -> None:
    table = Table("what", "found", "odd, and what to do")
    for line in lines:
        table.add_row(line.what, Text(line.found), Text("\n".join(line.odd)))
    console = PlainConsole()
    console.print(table)
    count = sum(len(line.odd) for line in lines)
    ending = "Nothing is odd." if count == 0 else f"{count} odd: look at them before you train."
    console.print(f"Training can read this capture. {ending}", highlight=False)
