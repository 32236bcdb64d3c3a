"""One click on every object of captures, and nothing tuned: IoU with the truth, in the clicked view and in others.

    python benchmarks/one_click.py --runs nook RUN/config.yml room OTHER/config.yml --output one_click.json
    python benchmarks/one_click.py --runs shaped RUN/config.yml unshaped OTHER/config.yml --objects chair lamp

Clicks are those of a careful person: in the training view that shows most of the object, on its pixel farthest from the
outline. Runs of one capture get the same clicks. The mask is the viewer's selection of a label that is alone.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from jacobinerf_ns.errors import one_line_exit
from jacobinerf_ns.evaluation.one_click import LEAST_PIXELS, WAYS, Found, Ious, Truth, mean, measure
from jacobinerf_ns.run.opened import open_run


@dataclass
class OneClick:
    """IoU of one click per object, for runs of one capture or of several."""

    runs: dict[str, Path]
    """NAME config.yml of each run, in the order of the columns."""
    objects: tuple[str, ...] = ()
    """Names of the objects (or classes); none: all that cover 60 pixels of a training view."""
    truth: Truth = "instances"
    """Label maps that the objects are of."""
    stride: int = 1
    """Score every stride-th pixel in both directions; 1 is all."""
    output: Path | None = None
    """JSON file for the numbers."""
    found: dict[str, Found] = field(default_factory=dict, init=False)

    def main(self) -> None:
        """Measures, and prints tables: all ways to a threshold, and each object with its own."""
        with one_line_exit():
            for name, config in self.runs.items():
                self.found[name] = measure(open_run(config).pipeline, self.objects, self.truth, self.stride, name)
        self._print("IoU of one click: clicked view / held-out pixels / mean of held-out views", WAYS)
        for name, one in self.found.items():
            rows = dict(enumerate(f"{c.name} ({t:.2f})" for c, t in zip(one.cases, one.natural, strict=True)))
            self._print_objects(name, rows)
        if self.output is not None:
            settings = {"truth": self.truth, "stride": self.stride, "least_pixels": LEAST_PIXELS}
            runs = {name: one.as_dict() for name, one in self.found.items()}
            self.output.write_text(json.dumps({**settings, "runs": runs}, indent=1) + "\n")

    def _print(self, title: str, rows: dict[str, str]) -> None:
        table = Table(title=title)
        for heading in ("threshold", *(f"{name} ({len(one.cases)})" for name, one in self.found.items())):
            table.add_column(heading)
        for way, text in rows.items():
            table.add_row(text, *(written(mean(one.by(way))) for one in self.found.values()))
        Console().print(table)

    def _print_objects(self, name: str, rows: dict[int, str]) -> None:
        one = self.found[name]
        table = Table("object (own threshold)", "own", "best level", "levels", title=name)
        own, best = one.by("own"), one.by("levels")
        for place, text in rows.items():
            levels = " ".join(f"{level:.2f}" for level in one.levels[place])
            table.add_row(text, written(own[place]), written(best[place]), levels)
        Console().print(table)


def written(found: Ious) -> str:
    """The three numbers in a cell."""
    return " / ".join(f"{value:.2f}" for value in found)


if __name__ == "__main__":
    tyro.cli(OneClick).main()
