"""One word a class against one click a class, and against what other methods make of the same words.

    python benchmarks/words.py --runs nook RUN/config.yml atelier OTHER/config.yml --output words.json

The teacher stands in for CLIP: each class name has a random vector of 64 numbers, seen through patches and with noise.
Words that no class has are asked for as well; each that is said to be there is a false alarm.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jacobinerf_ns.annotations.schema import PALETTE, Annotations, Label, ViewSettings
from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.propagation import JNERF_PLUS, PropagationConfig
from jacobinerf_ns.core.relevancy import relevancy
from jacobinerf_ns.errors import one_line_exit
from jacobinerf_ns.evaluation.annotators import Annotator
from jacobinerf_ns.evaluation.exercise import Fitted, TrainedFields, ViewPixels, make_exercise
from jacobinerf_ns.evaluation.ours import fit_2d, fit_plus
from jacobinerf_ns.evaluation.scoring import score_view
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.words import CANONICAL
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.responses import responses
from jacobinerf_ns.labels.traces import Piece
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.labels.words import Answer
from jacobinerf_ns.progress import track
from jacobinerf_ns.run.opened import Run, open_run
from jacobinerf_ns.tasks.feature_field.training import distil

_NO_SUCH = """
elephant giraffe submarine volcano trumpet cactus violin skyscraper penguin helicopter igloo anchor tractor canoe
dinosaur telescope cathedral windmill kangaroo lighthouse
"""
ABSENT = tuple(_NO_SUCH.split())
"""Names that no scene here has."""


@dataclass
class Words:
    """Score words on held-out views, and count false alarms."""

    runs: dict[str, Path]
    """Name and config.yml of each run; its capture has semantic maps."""
    noise: float = 1.0
    """Of the stand-in's patches, relative to their mean length."""
    clicks: int = 3
    """Draws of one click a class, averaged."""
    stride: int = 1
    """Scores every stride-th pixel of every stride-th row."""
    output: Path | None = None
    """JSON file of all numbers."""

    def main(self) -> dict[str, Any]:
        """Print a table, and write the file.

        Raises:
            UserError: bad input, in one line.
        """
        found = {name: self._score(path) for name, path in self.runs.items()}
        _show(found)
        if self.output is not None:
            self.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found

    def _score(self, path: Path) -> dict[str, Any]:
        run = open_run(path, change=self._teach, load_photos=True)
        run.pipeline.eval()
        data = run.pipeline.datamanager
        train, truth = (read_truth(data.frames(split), "semantics") for split in ("train", "eval"))
        present = sorted({int(i) for view in train for i in view.unique()} - {VOID_ID})
        known = data.train_dataparser_outputs.metadata["classes"]
        names = {identity: known[identity] for identity in present}
        answers = {identity: run.pipeline.words.find(name) for identity, name in names.items()}
        false = [name for name in ABSENT if run.pipeline.words.find(name).places]
        fields = TrainedFields(run.pipeline, None)
        fitted = {"one word": self._by_words(fields, run, names, answers, PropagationConfig())}
        fitted["one word, J-NeRF+"] = self._by_words(fields, run, names, answers, JNERF_PLUS)
        fitted |= _by_features(run, list(names.values()))
        ids = dict.fromkeys(fitted, present)
        with tempfile.TemporaryDirectory() as folder:
            for draw in range(self.clicks):
                labelled = Annotator("sparse").label(train, draw)
                exercise = make_exercise(fields, labelled, names, False, Path(folder))
                for name, fit in (("one click", fit_2d), ("one click, J-NeRF+", fit_plus)):
                    fitted[f"{name} {draw}"], ids[f"{name} {draw}"] = fit(fields, exercise), exercise.ids
        confusion = {name: torch.zeros(max(present) + 1, max(present) + 1, dtype=torch.long) for name in fitted}
        contenders: Any = {(name, 0): one for name, one in fitted.items()}
        for image, view in enumerate(track(truth, "Scoring")):
            scored = score_view(fields, contenders, "eval", image, (view.shape[0], view.shape[1]), self.stride)
            for (name, _), scores in scored.scores.items():
                predicted = torch.tensor(ids[name])[scores.argmax(-1)]
                confusion[name] += metrics.confusion_matrix(predicted, scored.of(view), max(present) + 1, VOID_ID)
        miou = {name: metrics.scores(matrix, present).miou for name, matrix in confusion.items()}
        return {
            "miou": _averaged(miou),
            "there": {answer.words: [answer.stands_out, len(answer.places)] for answer in answers.values()},
            "false_alarms": false,
            "absent": len(ABSENT),
        }

    def _teach(self, config: Any) -> None:
        config.pipeline.datamanager.extractor = OracleConfig(noise=self.noise, by_name=True)

    def _by_words(
        self,
        fields: TrainedFields,
        run: Run,
        names: dict[int, str],
        answers: dict[int, Answer],
        config: PropagationConfig,
    ) -> Fitted:
        """Fit labels to the places of words; a class that was not found has no prototype."""
        labels = tuple(Label(id=i, name=n, colour=PALETTE[k % len(PALETTE)]) for k, (i, n) in enumerate(names.items()))
        seeds = tuple(answer.seed(identity) for identity, answer in answers.items() if answer.places)
        annotations = Annotations(labels=labels, seeds=seeds, view=ViewSettings(propagation=config))
        snapshot = fields.labels.snapshot_of(annotations, run.folder, needs_surface=False)
        assert snapshot is not None
        return Fitted(lambda seen: responses(Piece(seen.shaped), snapshot))


def _by_features(run: Run, names: Sequence[str]) -> dict[str, Fitted]:
    """What words make of distilled features (LERF-like, DFF-like), and of the teacher's in the views themselves."""
    teacher: Any = run.pipeline.datamanager.config.extractor.setup()
    words, negatives = teacher.encode(names), teacher.encode(CANONICAL)
    field = distil(run.pipeline)
    store = run.pipeline.datamanager.teacher_store("eval")

    def distilled(seen: ViewPixels) -> Float[Tensor, "rays features"]:
        return field.rendered(seen.shaped).cpu()

    def cosines(features: Float[Tensor, "rays features"]) -> Float[Tensor, "rays labels"]:
        return F.normalize(features, dim=-1) @ words.T

    def lerf(features: Float[Tensor, "rays features"]) -> Float[Tensor, "rays labels"]:
        others = (F.normalize(features, dim=-1) @ negatives.T)[:, None].expand(-1, len(names), -1)
        return relevancy(cosines(features), others)

    def fitted(look: Callable[[ViewPixels], Tensor], score: Callable[[Tensor], Tensor]) -> Fitted:
        return Fitted(lambda seen: score(look(seen)))

    return {
        "LERF-like relevancy, distilled": fitted(distilled, lerf),
        "DFF-like softmax, distilled": fitted(distilled, cosines),
        "teacher in the view itself": fitted(lambda seen: store.sample(seen.pixels), cosines),
    }


def _averaged(miou: dict[str, float]) -> dict[str, float]:
    """Return means over the draws of clicks, which end in a number."""
    groups: dict[str, list[float]] = {}
    for name, value in miou.items():
        groups.setdefault(name.rstrip("0123456789 ") if "click" in name else name, []).append(value)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def _show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("mIoU, held-out views", *found)
    for name in next(iter(found.values()))["miou"]:
        table.add_row(name, *(f"{one['miou'][name]:.3f}" for one in found.values()))
    missed = (str(sum(places == 0 for _, places in one["there"].values())) for one in found.values())
    table.add_row("words of the scene not found", *missed)
    table.add_row("false alarms", *(f"{len(one['false_alarms'])} of {one['absent']}" for one in found.values()))
    Console().print(table)


if __name__ == "__main__":
    with one_line_exit():
        tyro.cli(Words).main()
