"""What an evaluation shows people: a table, a JSON file, and a sheet of pictures."""

import json
import statistics
from pathlib import Path

import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.annotations import PALETTE
from jacobinerf_ns.evaluating import MEASURES, Report
from jacobinerf_ns.files import writing
from jacobinerf_ns.label_maps import VOID_ID
from jacobinerf_ns.pictures import Tile, write_sheet

TITLES = {
    "2d": "ours, 2D",
    "3d": "ours, 3D",
    "plus": "ours, J-NeRF+",
    "network": "ours, aggregator network",
    "paper": "the paper's decision",
    "unshaped": "unshaped field",
    "unshaped-plus": "unshaped field, J-NeRF+",
    "teacher": "teacher, 2D nearest",
    "dff": "DFF, distilled features",
    "semantic-nerf": "Semantic-NeRF head",
    "probe": "linear probe",
}
"""What methods are called in tables."""
WRONG, RIGHT = (214, 39, 40), (235, 235, 235)


def table(report: Report) -> Table:
    """Mean over seeds, and the spread where there are several."""
    protocol = report.annotator.protocol
    found = Table(title=f"{protocol}: {report.view} labelled, held-out views scored; PSNR {report.psnr:.2f} dB")
    for heading in ("method", "mIoU", "mIoU, labelled", "accuracy", "class average"):
        found.add_column(heading, justify="left" if heading == "method" else "right")
    for method, per_seed in sorted(report.scores.items(), key=lambda pair: -report.mean(pair[0], "miou")):
        cells = []
        for measure in MEASURES:
            values = [getattr(scores, measure) for scores in per_seed]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        found.add_row(TITLES[method], *cells)
    return found


def class_table(report: Report) -> Table:
    """IoU per class, mean over seeds."""
    found = Table(title="IoU per class")
    found.add_column("class")
    for method in report.scores:
        found.add_column(method, justify="right")
    for identity, name in report.names.items():
        cells = []
        for per_seed in report.scores.values():
            values = torch.tensor([scores.class_iou[identity] for scores in per_seed])
            cells.append("–" if bool(values.isnan().all()) else f"{float(values.nanmean()):.3f}")
        found.add_row(name, *cells)
    return found


def write_report(report: Report, folder: Path, name: str) -> list[Path]:
    """Writes NAME.json, and NAME.png where views were kept. Errors: `UserError` for a folder that cannot be written."""
    written = [folder / f"{name}.json"]
    with writing(written[0], overwrite=True) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    if report.shown:
        written.append(folder / f"{name}.png")
        with writing(written[1], overwrite=True) as temporary:
            write_sheet(temporary, picture_rows(report))
    return written


def picture_rows(report: Report) -> list[list[Tile]]:
    """A row per view: photograph, truth, then prediction and errors of every method."""
    rows = []
    for shown in report.shown:
        row = [Tile(shown.photo, shown.name), Tile(paint(shown.truth), "truth")]
        for method, predicted in shown.predicted.items():
            wrong = (predicted != shown.truth) & (shown.truth != VOID_ID)
            colours = torch.tensor([RIGHT, WRONG]) / 255.0
            row.append(Tile(paint(predicted), TITLES[method]))
            row.append(Tile(colours[wrong.long()], f"errors: {float(wrong.float().mean()):.1%}"))
        rows.append(row)
    return rows


def paint(ids: Int[Tensor, "height width"]) -> Float[Tensor, "height width 3"]:
    """A colour per id, the same in every picture; void is black."""
    colours = torch.tensor([(0, 0, 0), *(shade(i) for i in range(int(ids.max())))]) / 255.0
    return colours[ids]


def shade(position: int) -> tuple[int, int, int]:
    """Colour of a label by position: the palette, then darker rounds of it."""
    factor = 0.75 ** (position // len(PALETTE))
    red, green, blue = PALETTE[position % len(PALETTE)]
    return round(red * factor), round(green * factor), round(blue * factor)
