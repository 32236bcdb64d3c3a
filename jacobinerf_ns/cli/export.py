"""`jacobinerf export`: takes labels out of a run as a point cloud and meshes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console


@dataclass
class Export:
    """Write what belongs to a label as a point cloud, and on request as a mesh."""

    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """Folder for points.ply, mesh_NAME.ply and export.json."""
    label: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    """Name of a label; may be given several times. `all` takes every label that has seeds."""
    num_points: int = 200_000
    """Points to sample; outliers are taken off afterwards."""
    mesh: bool = False
    """Also make a mesh of each label, by Poisson reconstruction."""
    frame: Literal["world", "scene"] = "world"
    """Frame of the files: the capture's own (that of its transforms.json), or the one that the run trains in."""
    remove_outliers: bool = True
    """Take off points that are far from all others of their label."""
    threshold: float | None = None
    """Response (0..1) from which on a pixel belongs to a label; None is the annotation file's."""
    json: bool = True
    """Also write counts and bounding boxes, as export.json."""
    annotations: Path | None = None
    """Annotation file, instead of the run's own."""
    overwrite: bool = False
    """Replace the files of an earlier export."""

    def main(self) -> dict[str, Any]:
        """Writes the files, and prints what is in them. Errors: `UserError`."""
        from jacobinerf_ns.run import open_run
        from jacobinerf_ns.tasks.parts.export import ExportSettings, export_parts

        settings = ExportSettings(
            num_points=self.num_points,
            mesh=self.mesh,
            frame=self.frame,
            remove_outliers=self.remove_outliers,
            threshold=self.threshold,
            summary=self.json,
            overwrite=self.overwrite,
        )
        run = open_run(self.load_config, self.annotations)
        summary = export_parts(run, self.label, self.output_dir.absolute(), settings)
        console = Console()
        for entry in summary["labels"]:
            mesh = f", {entry['mesh']} with {entry['triangles']} triangles" if "mesh" in entry else ""
            console.print(f"{entry['name']}: {entry['points']} points{mesh}", markup=False, highlight=False)
        console.print(str(self.output_dir.absolute()), soft_wrap=True, markup=False, highlight=False)
        return summary
