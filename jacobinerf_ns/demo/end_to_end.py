"""The demo from end to end: room, training, contact sheet and numbers."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from rich.table import Table

from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.config import jacobinerf_lite
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.demo.contact_sheet import click_things, write_contact_sheet
from jacobinerf_ns.evaluation.one_click import Found, mean, measure
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.progress import PlainConsole, progress_bar
from jacobinerf_ns.run.opened import Run
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig
from jacobinerf_ns.training import train

CONSOLE = PlainConsole()
STRIDE = 2
"""Every second pixel is scored, in both directions: in a demo nobody waits for the third digit."""


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
    """Train on the room, click three things, and write `contact_sheet.png` and `numbers.json`.

    The clicks are kept in the run, where the viewer and all commands find them. "Unshaped" is what the colour trunk of
    the same field answers, which shaping of the entity branch leaves alone: one training shows both.
    """
    trainer = train(config, "Training", room, output_dir / "outputs")
    pipeline, folder = trainer.pipeline, trainer.config.get_base_dir()
    pipeline.eval()
    with quiet_nerfstudio():
        run = Run(trainer.config, pipeline, folder, trainer.config.max_num_iterations - 1)
        notes, cases = click_things(run)
        run.save(notes)
        found = {"shaped": measure(pipeline, (), "instances", STRIDE, "Clicking everything once")}
        with pipeline.model.answering_by("trunk"):
            found["unshaped"] = measure(pipeline, (), "instances", STRIDE, "The same, unshaped")
            title = "Unshaped, not in one piece"
            found["unshaped, not in one piece"] = measure(pipeline, (), "instances", STRIDE, title, connected=False)
        write_contact_sheet(output_dir / "contact_sheet.png", run, notes, cases)
    teacher = config.pipeline.datamanager.extractor
    numbers: dict[str, Any] = {"teacher": {"kind": type(teacher).__name__, **vars(teacher)}}
    numbers |= {name: one.as_dict() for name, one in found.items()}
    with atomic_write(output_dir / "numbers.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2))
    _print_numbers(found)
    config_file = folder / "config.yml"
    viewer = Path(sys.executable).parent / "ns-viewer"
    CONSOLE.print(f"\nPictures: {output_dir / 'contact_sheet.png'}\nThe run:  {config_file}", soft_wrap=True)
    CONSOLE.print(f"Click on in it: {viewer} --load-config {config_file}", soft_wrap=True)


def _print_numbers(found: dict[str, Found]) -> None:
    table = Table(title=f"One click on each of {len(found['shaped'].cases)} objects of the demo room: mean IoU")
    for heading in ("", "in the clicked view", "in held-out views", "the best size that is offered"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in found.items():
        own, best = mean(one.by("own")), mean(one.by("levels"))
        table.add_row(name, *(f"{value:.2f}" for value in (own.clicked, own.pooled, best.pooled)))
    CONSOLE.print(table)
    CONSOLE.print("Unshaped: what the colour trunk of the same field answers.")
