"""The demo from end to end: room, training, contact sheet and numbers."""

import json
import sys
from copy import deepcopy
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.config import jacobinerf_lite
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.demo.contact_sheet import write_contact_sheet
from jacobinerf_ns.evaluation import shaping_quality
from jacobinerf_ns.evaluation.shaping_quality import OneClickReport
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.progress import progress_bar
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig
from jacobinerf_ns.training import train

CONSOLE = Console()


def make_room(output_dir: Path, views: int, width: int) -> Path:
    """Write the room as a capture, with a progress bar."""
    with progress_bar("views") as progress:
        task = progress.add_task("Ray tracing the room", total=views)
        return write_capture(
            output_dir / "room",
            num_views=views,
            width=width,
            height=width * 3 // 4,
            num_test=max(1, views // 6),
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )


def demo_config(extractor: ExtractorConfig, steps: int | None, seed: int) -> JacobiNeRFTrainerConfig:
    """Return `jacobinerf-lite` with a teacher; with other steps than its own, its stages keep their proportions."""
    config = deepcopy(jacobinerf_lite.config)
    assert isinstance(config, JacobiNeRFTrainerConfig)
    config.machine.seed = seed
    config.pipeline.datamanager.extractor = extractor
    if steps is not None:
        model, scale = config.pipeline.model, steps / config.max_num_iterations
        model.shaping_start_step = max(1, round(scale * model.shaping_start_step))
        if model.shaping.decay_steps is not None:
            model.shaping.decay_steps = max(1, round(scale * model.shaping.decay_steps))
        config.max_num_iterations = steps
    return config


def run_demo(config: JacobiNeRFTrainerConfig, room: Path, output_dir: Path) -> None:
    """Train on the room, and write `contact_sheet.png` and `numbers.json`.

    "Unshaped" is what the colour trunk of the same field answers, which shaping of the entity branch leaves alone: one
    training shows both.
    """
    trainer = train(config, "Training", room, output_dir / "outputs")
    pipeline = trainer.pipeline
    with quiet_nerfstudio():
        with pipeline.model.answering_by("trunk"):
            unshaped = shaping_quality.evaluate_one_click(pipeline)
        reports = {"unshaped": unshaped, "shaped": shaping_quality.evaluate_one_click(pipeline)}
        write_contact_sheet(output_dir / "contact_sheet.png", pipeline)
    teacher = config.pipeline.datamanager.extractor
    numbers = {"teacher": {"kind": type(teacher).__name__, **vars(teacher)}}
    numbers |= {name: report.as_dict() for name, report in reports.items()}
    with atomic_write(output_dir / "numbers.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2))
    _print_reports(reports)
    run = trainer.config.get_base_dir() / "config.yml"
    CONSOLE.print(f"\nPictures: {output_dir / 'contact_sheet.png'}\nThe run:  {run}", soft_wrap=True)
    CONSOLE.print(f"Walk around in it: {Path(sys.executable).parent / 'ns-viewer'} --load-config {run}", soft_wrap=True)


def _print_reports(reports: dict[str, OneClickReport]) -> None:
    table = Table(title="Held-out views of the demo room")
    for heading in ("", "cosine same class", "different class", "mIoU, one click a class", "whole view"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, report in reports.items():
        values = (report.cosine_same, report.cosine_different, report.mean_click_miou, report.dense_miou)
        table.add_row(name, *(f"{value:.3f}" for value in values))
    CONSOLE.print(table)
    CONSOLE.print(f"PSNR of the rendering: {reports['shaped'].psnr:.2f} dB. Unshaped: what the colour trunk answers.")
