"""Draws what one click gets, in photos that nobody clicked in, and scores drawn masks.

    python benchmarks/object_picture.py --run RUN/config.yml --image 0018.jpg --xy 540 560 \
        --others 0007.jpg 0026.jpg --truth tests/data/fox_masks --output fox_click.png

The pixel is one of the original photo, column first. A row per photo: what is selected, recoloured, and cut out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool
from PIL import Image
from rich.console import Console
from torch import Tensor

from jacobinerf_ns.annotations import changes
from jacobinerf_ns.annotations.schema import Edit
from jacobinerf_ns.demo.contact_sheet import render_with
from jacobinerf_ns.errors import one_line_exit
from jacobinerf_ns.features.base import load_rgb
from jacobinerf_ns.files.names import find_image
from jacobinerf_ns.files.pictures import Tile, write_sheet
from jacobinerf_ns.run.opened import Run, open_run
from jacobinerf_ns.run.photos import Photo

NAME = "clicked"
PINK = (235, 60, 160)


@dataclass
class ObjectPicture:
    """One click, and the thing in other photos: selected, recoloured, cut out."""

    run: Path
    """config.yml of the run."""
    image: str
    """File name of the photo that is clicked."""
    xy: tuple[int, int]
    """Column and row of the click, in pixels of the original photo."""
    others: tuple[str, ...]
    """File names of photos that are not clicked."""
    output: Path
    """PNG to write."""
    truth: Path | None = None
    """Folder of index PNGs with the photos' names: the selection is scored against pixels that are not 0."""
    grow: int = 0
    """Sizes larger (or smaller, below 0) than the click's own."""
    tile_width: int = 200
    """Width of each picture, pixels."""
    resolution: float = 0.25
    """Share of the photos' resolution that is rendered."""

    def main(self) -> None:
        """Fits the click, renders, scores, and writes the picture."""
        with one_line_exit():
            run = open_run(self.run)
            notes = run.annotations.click(NAME, self.image, self.xy).annotations
            label = changes.label_named(notes, NAME)
            notes = changes.set_grow(notes, label.id, self.grow)
            plain = run.fit(notes).snapshot
            print_levels(plain.levels(0).levels, plain.thresholds()[0])
            edits = [Edit(kind="recolour", label=label.id, colour=PINK), Edit(kind="extract", label=label.id)]
            clicked = load_rgb(self._photo(run, self.image).path)
            scale = self.tile_width / clicked.width
            small = clicked.resize((self.tile_width, round(clicked.height * scale)))
            mark = round(self.xy[1] * scale), round(self.xy[0] * scale)
            tile = Tile(torch.from_numpy(np.array(small)) / 255.0, f"one click, in {self.image}", mark)
            rows = [[tile]]
            for name in self.others:
                camera = self._photo(run, name).camera.to(run.pipeline.device)
                camera.rescale_output_resolution(self.resolution)
                shown = render_with(run.pipeline, camera, plain)
                row = [Tile(shown["selection_overlay"], f"selected, in {name}")]
                for edit in edits:
                    snapshot = run.fit(changes.add_edit(notes, edit)).snapshot
                    row.append(Tile(render_with(run.pipeline, camera, snapshot)["edited"], edit.kind))
                rows.append(row)
                if self.truth is not None:
                    score(name, shown["selection"][..., 0].bool(), self.truth / f"{Path(name).stem}.png")
            first = rows.pop(0)
            write_sheet(self.output, [[*first, *rows[0]], *([*first, *row] for row in rows[1:])], self.tile_width)

    def _photo(self, run: Run, name: str) -> Photo:
        photos = run.photos("all")
        return photos[find_image(name, [photo.path for photo in photos], "photos")]


def print_levels(levels: tuple[float, ...], used: float) -> None:
    """Says which sizes are offered."""
    Console().print(f"levels {', '.join(f'{level:.2f}' for level in levels)}; threshold {used:.2f}")


def score(name: str, selected: Bool[Tensor, "height width"], path: Path) -> None:
    """Prints intersection over union with a drawn mask."""
    with Image.open(path) as image:
        size = (selected.shape[1], selected.shape[0])
        truth = torch.from_numpy(np.array(image.resize(size, Image.Resampling.NEAREST)) > 0)
    iou = float((selected.cpu() & truth).sum() / (selected.cpu() | truth).sum())
    Console().print(f"{name}: IoU {iou:.3f}")


if __name__ == "__main__":
    tyro.cli(ObjectPicture).main()
