"""`jacobinerf export`: takes labels out of a run as a point cloud and meshes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from jacobinerf_ns.progress import PlainConsole
from jacobinerf_ns.tasks.settings import ExportSettings


@dataclass(frozen=True)
class _What:
    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """Folder for points.ply, mesh_NAME.ply and export.json."""
    label: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Name of a label; may be given several times. `all` takes every label that has seeds."""
    annotations: Path | None = None
    """Annotation file, instead of the run's own."""


@dataclass(frozen=True)
class Export(ExportSettings, _What):
    """Write what belongs to a label as a point cloud, and on request as a mesh."""

    def main(self) -> dict[str, Any]:
        """Write the files, and print what is in them.

        Raises:
            UserError: see `export_parts`.
        """
        from jacobinerf_ns.run.opened import open_run
        from jacobinerf_ns.tasks.parts.export import export_parts

        run = open_run(self.load_config, self.annotations)
        summary = export_parts(run, self.label, self.output_dir.absolute(), self)
        console = PlainConsole()
        for entry in summary["labels"]:
            mesh = f", {entry['mesh']} with {entry['triangles']} triangles" if "mesh" in entry else ""
            console.print(f"{entry['name']}: {entry['points']} points{mesh}", highlight=False)
        console.print(str(self.output_dir.absolute()), soft_wrap=True, highlight=False)
        return summary
