"""Draws what resonates with one click, in a plain and in a shaped run of the same capture (the README's picture).

    python benchmarks/resonance_picture.py --plain RUN/config.yml --shaped RUN/config.yml --image 0001.jpg \
        --pixel 120 150 --output docs/images/fox_resonance.png
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from nerfstudio.utils.eval_utils import eval_setup

from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.evaluation.shaping_quality import RenderedView, render_jacobians
from jacobinerf_ns.files.pictures import Tile, heat_map, write_sheet
from jacobinerf_ns.pipeline import JacobiNeRFPipeline


@dataclass
class ResonancePicture:
    """Photograph with the click, resonance before and after shaping, and in views nobody clicked in."""

    plain: Path
    """config.yml of the run that is not shaped."""
    shaped: Path
    """config.yml of the shaped run."""
    image: str
    """File name (without folder and ending) of the training image that is clicked."""
    pixel: tuple[int, int]
    """Row and column of the click, in pixels of the training image."""
    output: Path
    """PNG to write."""
    others: int = 2
    """Held-out views to show as well."""
    tile_width: int = 240
    """Width of each picture, pixels."""

    def main(self) -> None:
        """Renders the views and writes the sheet."""
        plain, shaped = (self._load(path) for path in (self.plain, self.shaped))
        data = shaped.datamanager
        names = [path.stem for path in data.train_dataset.image_filenames]
        if self.image not in names:
            raise UserError(f"no training image {self.image}: expected one of {', '.join(names[:5])}, …")
        place = names.index(self.image)
        camera = data.train_dataset.cameras[place : place + 1]
        photo = data.train_dataset[place]["image"][..., :3]
        before, after = render_jacobians(plain.model, camera), render_jacobians(shaped.model, camera)
        row = [
            Tile(photo, "photo, one click", self.pixel),
            Tile(after.rgb, "rendering, shaped"),
            Tile(self._resonance(before, before), "resonance, plain", self.pixel),
            Tile(self._resonance(after, after), "resonance, shaped", self.pixel),
        ]
        rows = [row, []]
        step = max(1, len(data.eval_dataset) // max(1, self.others))
        for i in range(0, step * self.others, step):
            view = render_jacobians(shaped.model, data.eval_dataset.cameras[i : i + 1])
            rows[1].append(Tile(data.eval_dataset[i]["image"][..., :3], "held-out photo"))
            rows[1].append(Tile(self._resonance(view, after), "its resonance, shaped"))
        write_sheet(self.output, [row for row in rows if row], self.tile_width)

    def _load(self, config: Path) -> JacobiNeRFPipeline:
        _, pipeline, _, _ = eval_setup(config)
        assert isinstance(pipeline, JacobiNeRFPipeline)
        return pipeline

    def _resonance(self, view: RenderedView, clicked: RenderedView) -> torch.Tensor:
        direction = clicked.jacobians[self.pixel[0], self.pixel[1]][None]
        return heat_map(cosine_response(view.jacobians.flatten(0, 1), direction).view(view.rgb.shape[:2]))


if __name__ == "__main__":
    with one_line_exit():
        tyro.cli(ResonancePicture).main()
