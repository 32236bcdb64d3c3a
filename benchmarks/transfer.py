"""Cross-scene transfer: labels of one capture found in another, against as many true clicks there.

    python benchmarks/transfer.py --runs nook RUN/config.yml atelier RUN/config.yml --pairs nook:atelier

A simulated annotator clicks the first capture (`evaluating`'s `clicks` protocol, one view). Scores are of the second
capture's held-out views, on pixels whose true class both captures name, every `stride`-th pixel in both directions.
A label that was left out is wrong on all its pixels. Oracle runs are shaped by class ids, which mean other things in
other captures: their transfer asks an oracle by name, made for it; the trained fields stay as they are.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from jaxtyping import Int
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.annotations.schema import Annotations, Click, Label, ViewSettings
from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.matching import label_cosines
from jacobinerf_ns.core.propagation import JNERF_PLUS, PropagationConfig, decide
from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.evaluation.annotators import Annotator, draw_pixels
from jacobinerf_ns.evaluation.exercise import TrainedFields, ViewPixels, make_exercise
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.files.atomic import atomic_write
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.responses import responses
from jacobinerf_ns.labels.traces import Piece
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.run.opened import open_run
from jacobinerf_ns.tasks.transfer.files import match_picture
from jacobinerf_ns.tasks.transfer.side import Side
from jacobinerf_ns.tasks.transfer.transfer import Transferred, TransferSettings, transfer
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

MEASURES = ("accuracy", "miou")
WAYS = {"": PropagationConfig(), ", J-NeRF+": JNERF_PLUS}
Predict = Callable[[ViewPixels], Int[Tensor, "rays"]]
"""Class ids of the second capture."""


class Pair(NamedTuple):
    """Two opened runs, and the classes that both name."""

    source: Side
    target: Side
    ids: dict[str, int]
    """Ids in the second capture of the shared class names."""


@dataclass
class TransferBenchmark:
    """Measures transfers between trained runs."""

    runs: dict[str, Path]
    """Name and config.yml of each run."""
    pairs: tuple[str, ...]
    """FROM:TO, by the runs' names."""
    clicks: int = 8
    """Clicks per label in the second capture, transferred or true."""
    annotator_clicks: int = 5
    """Clicks per class in the first capture."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the annotator and of the true clicks."""
    stride: int = 4
    """Of scored pixels, for images up to 160 pixels wide; larger images are scored as coarsely."""
    cache_dir: Path | None = None
    """Folder for features that are made for the transfer."""
    results: Path = Path("benchmarks/results/transfer.json")
    """File of the numbers; pairs that are not measured now stay as they are."""
    picture_dir: Path | None = None
    """Folder for a correspondence picture of each pair."""
    _found: dict[str, Any] = field(init=False, default_factory=dict)

    def main(self) -> None:
        """Measures, writes the numbers pair by pair, and prints the table."""
        if self.results.exists():
            self._found = json.loads(self.results.read_text())["pairs"]
        for name in self.pairs:
            self._found[name] = self._measure(name)
            content = {
                "annotator_clicks": self.annotator_clicks,
                "clicks": self.clicks,
                "seeds": self.seeds,
                "pairs": self._found,
            }
            with atomic_write(self.results) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
        Console().print(table(self._found))

    def _measure(self, name: str) -> dict[str, Any]:
        first, _, second = name.partition(":")
        start = time.perf_counter()
        pair = open_pair(self._path(first), self._path(second), self.cache_dir)
        predictors: dict[tuple[str, int], Predict] = {}
        transfers = []
        for seed in self.seeds:
            annotations = annotate(pair.source, self.annotator_clicks, seed)
            found = transfer(pair.source, pair.target, annotations, Path(), TransferSettings(self.clicks))
            transfers.append(describe(pair, found))
            truth = true_clicks(pair, self.clicks, seed)
            predictors["teacher alone", seed] = teacher_alone(pair, annotations)
            for way, config in WAYS.items():
                predictors[f"transferred{way}", seed] = propagated(pair, found.annotations, config)
                predictors[f"true clicks{way}", seed] = propagated(pair, truth, config)
            if self.picture_dir is not None and seed == self.seeds[0]:
                with atomic_write(self.picture_dir / f"{first}-to-{second}.png") as temporary:
                    match_picture(pair.source, pair.target, found).save(temporary)
        scores = score(pair, predictors, self.stride)
        ways = dict.fromkeys(way for way, _ in predictors)
        return {
            "shared_classes": sorted(pair.ids),
            "teacher": str(pair.target.run.pipeline.datamanager.config.extractor),
            "features": pair.target.source_of_features,
            "transfers": transfers,
            "scores": {
                way: {measure: [scores[way, seed][measure] for seed in self.seeds] for measure in MEASURES}
                for way in ways
            },
            "seconds": time.perf_counter() - start,
        }

    def _path(self, name: str) -> Path:
        if name not in self.runs:
            raise UserError(f"no run {name!r}: give its config.yml with --runs")
        return self.runs[name]


def open_pair(first: Path, second: Path, cache_dir: Path | None) -> Pair:
    """Opens both runs; oracle teachers by id are replaced by their like by name."""
    replaced: list[Path] = []

    def change(config: JacobiNeRFTrainerConfig) -> None:
        data = config.pipeline.datamanager
        data.cache_dir = cache_dir or data.cache_dir
        if isinstance(data.extractor, OracleConfig) and not data.extractor.by_name:
            data.extractor = OracleConfig(data.extractor.noise, data.extractor.patch_size, by_name=True)
            replaced.append(path)

    sides = []
    for path in (first, second):
        run = open_run(path, change=change)
        run.pipeline.eval()
        sides.append(Side(run, own_teacher=path not in replaced))
    known, ids = (class_ids(side) for side in sides)
    return Pair(sides[0], sides[1], {name: identity for name, identity in ids.items() if name in known})


def class_ids(side: Side) -> dict[str, int]:
    """Class ids by name. Errors: `UserError` for a capture without class names."""
    classes = side.run.pipeline.datamanager.train_dataparser_outputs.metadata.get("classes")
    if not classes:
        raise UserError(f"{side.name} has no classes.json: shared classes are found by their names")
    return {name: identity for identity, name in classes.items()}


def annotate(side: Side, clicks: int, seed: int) -> Annotations:
    """What a person who clicks a capture's fullest view would have saved."""
    maps = read_truth(side.run.pipeline.datamanager.frames("train"))
    names = {identity: name for name, identity in class_ids(side).items()}
    labelled = Annotator("clicks", clicks).label(maps, seed)
    return make_exercise(TrainedFields(side.run.pipeline, None), labelled, names, False, Path()).annotations


def true_clicks(pair: Pair, clicks: int, seed: int) -> Annotations:
    """As many clicks of each shared class, drawn from all training views of the second capture: the upper bound."""
    maps = read_truth(pair.target.run.pipeline.datamanager.frames("train"))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(maps), generator=generator).tolist()
    labels, seeds = [], []
    for name, identity in pair.ids.items():
        labels.append(Label(id=identity, name=name, colour=(0, 0, 0)))
        views = [i for i in order if bool((maps[i] == identity).any())][:clicks]
        for i in views:
            only = torch.where(maps[i] == identity, identity, VOID_ID)
            rows, cols = draw_pixels(only, -(-clicks // len(views)), seed)
            height, width = maps[i].shape
            where = {"image": pair.target.photos[i].name, "width": width, "height": height}
            spots = zip(rows.tolist(), cols.tolist(), strict=True)
            seeds.extend(Click(label=identity, pixel=(col, row), **where) for row, col in spots)
    return Annotations(labels=tuple(labels), seeds=tuple(seeds))


def propagated(pair: Pair, annotations: Annotations, config: PropagationConfig) -> Predict:
    """What the second run's own Jacobians make of clicks there."""
    shown = annotations.model_copy(update={"view": ViewSettings(propagation=config)})
    snapshot = pair.target.run.pipeline.label_maker().snapshot_of(shown, Path(), needs_surface=False)
    lookup = torch.tensor([VOID_ID, *(pair.ids.get(label.name, VOID_ID) for label in annotations.labels)])

    def predict(seen: ViewPixels) -> Tensor:
        if snapshot is None:
            return torch.full((len(seen.pixels),), VOID_ID)
        return lookup[decide(responses(Piece(seen.shaped), snapshot), config).labels.cpu()]

    return predict


def teacher_alone(pair: Pair, annotations: Annotations) -> Predict:
    """The nearest seed of the first capture to what the teacher says of each held-out photo: no field takes part."""
    source, fields = pair.source, TrainedFields(pair.target.run.pipeline, None)
    pixels = source.seed_pixels(annotations, Path(), torch.zeros(0, 3).long(), torch.zeros(0, 3))
    vectors = source.features(pixels.pixels)
    ids = torch.tensor([pair.ids.get(label.name, VOID_ID) for label in annotations.labels])
    assert len(annotations.seeds) == len(vectors), "clicks are one pixel each"

    def predict(seen: ViewPixels) -> Tensor:
        features = fields.teacher_store("eval").sample(seen.pixels)
        return ids[label_cosines(features, vectors, pixels.labels, len(annotations.labels)).argmax(-1)]

    return predict


def score(
    pair: Pair, predictors: dict[tuple[str, int], Predict], stride: int
) -> dict[tuple[str, int], dict[str, float]]:
    """Accuracy and mIoU over the shared classes, pooled over the held-out views."""
    pipeline = pair.target.run.pipeline
    fields, truth = TrainedFields(pipeline, None), read_truth(pipeline.datamanager.frames("eval"))
    shared = torch.tensor(sorted(pair.ids.values()))
    count = max(int(shared.max()), *(int(view.max()) for view in truth)) + 1
    confusion = {key: torch.zeros(count, count, dtype=torch.long) for key in predictors}
    for i, view in enumerate(track(truth, "Scoring held-out views")):
        step = stride * max(1, round(view.shape[1] / 160))
        rows, cols = (torch.arange(step // 2, side, step) for side in view.shape)
        pixels = torch.cartesian_prod(torch.tensor([i]), rows, cols)
        for part in pixels.split(pipeline.model.config.eval_num_rays_per_chunk):
            seen, ids = fields.look("eval", part), view[part[:, 1], part[:, 2]]
            ids = torch.where(torch.isin(ids, shared), ids, VOID_ID)
            for key, predict in predictors.items():
                confusion[key] += metrics.confusion_matrix(predict(seen), ids, count, VOID_ID)
    found = {key: metrics.scores(matrix, shared.tolist()) for key, matrix in confusion.items()}
    return {key: {"accuracy": s.total_accuracy, "miou": s.miou_labelled} for key, s in found.items()}


def describe(pair: Pair, found: Transferred) -> dict[str, Any]:
    """Confidence of each label, and how many of its clicks are right."""
    maps = read_truth(pair.target.run.pipeline.datamanager.frames("train"))
    return {
        part.label.name: {
            "shared": part.label.name in pair.ids,
            "confidence": part.confidence,
            "returned": part.returned,
            "clicks": len(part.pixels),
            "right": sum(
                int(maps[i][row, col]) == pair.ids.get(part.label.name) for i, row, col in part.pixels.tolist()
            ),
        }
        for part in found.found
    }


def table(pairs: dict[str, Any]) -> Table:
    """Means over seeds."""
    shown = Table("transfer", "shared labels found", "absent labels found", "clicks right", "way", *MEASURES)
    for name, pair in pairs.items():
        entries = [entry for found in pair["transfers"] for entry in found.values()]
        counts = [
            _share([bool(entry["clicks"]) for entry in entries if entry["shared"]]),
            _share([bool(entry["clicks"]) for entry in entries if not entry["shared"]]),
            f"{sum(e['right'] for e in entries)} of {sum(e['clicks'] for e in entries)}",
        ]
        for i, (way, scores) in enumerate(pair["scores"].items()):
            first = [name, *counts] if i == 0 else [""] * (len(counts) + 1)
            shown.add_row(*first, way, *(f"{statistics.mean(scores[measure]):.3f}" for measure in MEASURES))
    return shown


def _share(flags: Sequence[bool]) -> str:
    return f"{sum(flags)} of {len(flags)}"


if __name__ == "__main__":
    with one_line_exit():
        tyro.cli(TransferBenchmark).main()
