"""`jacobinerf propagate`: label maps of all photos, as files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from jacobinerf_ns.progress import PlainConsole
from jacobinerf_ns.tasks.settings import PropagateSettings

if TYPE_CHECKING:
    from jacobinerf_ns.tasks.masks import Propagated

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class _Folders:
    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """Folder for the label maps, and for classes.json, which names their ids."""
    annotations: Path | None = None
    """Annotation file, instead of the run's own."""


@dataclass(frozen=True)
class Propagate(PropagateSettings, _Folders):
    """Turn the labels of a run into label maps of its photos: index PNGs, one COCO file, or LabelMe files.

    After an interruption the same command goes on with the photos that are missing.
    """

    def main(self) -> "Propagated":
        """Write the files, and print each label's share of the pixels.

        Raises:
            UserError: see `propagate`.
        """
        from jacobinerf_ns.tasks.masks import propagate

        try:
            result = propagate(self.load_config, self.output_dir, self, self.annotations)
        except KeyboardInterrupt:
            print("stopped: what is done is kept, and the same command goes on from there", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        _show(result)
        return result


def _show(result: "Propagated") -> None:
    console = PlainConsole()
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
