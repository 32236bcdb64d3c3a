"""What an evaluation shows people: a table, a JSON file, and a sheet of pictures."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.annotations.schema import PALETTE
from jacobinerf_ns.evaluation.labels import Report
from jacobinerf_ns.evaluation.objects import OBJECT_MEASURES, ObjectReport
from jacobinerf_ns.evaluation.registry import CONTENDERS, Method
from jacobinerf_ns.evaluation.scoring import MethodScores
from jacobinerf_ns.files.atomic import writing
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.files.pictures import Tile, write_sheet

WRONG, RIGHT = (214, 39, 40), (235, 235, 235)


def table(report: Report) -> Table:
    """Return means over seeds, and the spread where there are several, as a row per method."""
    protocol = report.annotator.protocol
    found = Table(title=f"{protocol}: {report.view} labelled, held-out views scored; PSNR {report.psnr:.2f} dB")
    found.add_column("method")
    for heading in report.MEASURES.values():
        found.add_column(heading, justify="right")
    for row in _method_rows(report, "miou"):
        found.add_row(*row)
    return found


def object_table(reports: Mapping[str, ObjectReport]) -> Table:
    """Return a row per scene (by name) and method, and the means over scenes where there are several."""
    found = Table(title="one object: the reference marked, the other views that have a mask scored")
    for heading in ("scene", "reference", "views", "method", *OBJECT_MEASURES.values()):
        found.add_column(heading, justify="left" if heading in ("scene", "reference", "method") else "right")
    for name, report in reports.items():
        facts = (name, report.reference, str(len(report.views)))
        for row in _method_rows(report, "iou"):
            found.add_row(*facts, *row)
            facts = ("", "", "")
        found.add_section()
    if len(reports) > 1:
        for i, (method, means) in enumerate(object_means(list(reports.values())).items()):
            cells = [f"{value:.3f}" for value in means.values()]
            found.add_row("" if i else "mean", "", "", CONTENDERS[method].title, *cells)
    return found


def _method_rows(report: MethodScores, best_by: str) -> Iterator[list[str]]:
    """Yield title and measures of every method, the best first."""
    for method in sorted(report.scores, key=lambda method: -report.mean(method, best_by)):
        yield [CONTENDERS[method].title, *(_spread(report.values(method, measure)) for measure in report.MEASURES)]


def object_means(reports: Sequence[ObjectReport]) -> dict[Method, dict[str, float]]:
    """Return every measure's mean over scenes, per method; each scene counts once."""
    return {
        method: {
            measure: statistics.mean(report.mean(method, measure) for report in reports) for measure in OBJECT_MEASURES
        }
        for method in reports[0].scores
    }


def write_object_means(reports: Mapping[str, ObjectReport], path: Path) -> None:
    """Write scenes by name and the means over them, as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "scenes": {name: report.as_dict() for name, report in reports.items()},
        "mean": object_means(list(reports.values())),
    }
    with writing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def class_table(report: Report) -> Table:
    """Return the IoU per class, mean over seeds."""
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


def write_report(report: MethodScores, folder: Path, name: str) -> list[Path]:
    """Write NAME.json, and NAME.png where views were kept.

    Returns:
        The files.

    Raises:
        UserError: the folder cannot be written.
    """
    written = [folder / f"{name}.json"]
    with writing(written[0], overwrite=True) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    if report.shown:
        written.append(folder / f"{name}.png")
        with writing(written[1], overwrite=True) as temporary:
            write_sheet(temporary, picture_rows(report))
    return written


def picture_rows(report: MethodScores) -> list[list[Tile]]:
    """Return a row per view: photograph, truth, then prediction and errors of every method."""
    rows = []
    for shown in report.shown:
        row = [Tile(shown.photo, shown.name), Tile(paint(shown.truth), "truth")]
        for method, predicted in shown.predicted.items():
            wrong = (predicted != shown.truth) & (shown.truth != VOID_ID)
            colours = torch.tensor([RIGHT, WRONG]) / 255.0
            row.append(Tile(paint(predicted), CONTENDERS[method].title))
            row.append(Tile(colours[wrong.long()], f"errors: {float(wrong.float().mean()):.1%}"))
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> str:
    """Return the mean over seeds, and how far they differ where there are several."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def paint(ids: Int[Tensor, "height width"]) -> Float[Tensor, "height width 3"]:
    """Return a colour per id, the same in every picture; void is black."""
    colours = torch.tensor([(0, 0, 0), *(shade(i) for i in range(int(ids.max())))]) / 255.0
    return colours[ids]


def shade(position: int) -> tuple[int, int, int]:
    """Return the colour of a label by position: the palette, then darker rounds of it."""
    factor = 0.75 ** (position // len(PALETTE))
    red, green, blue = PALETTE[position % len(PALETTE)]
    return round(red * factor), round(green * factor), round(blue * factor)
