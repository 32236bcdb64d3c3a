"""The paper's protocol from a file to tables, on miniatures of both data sets with a tiny field."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from miniatures import write_replica, write_scannet

from jacobinerf_ns.config import jacobinerf_lite
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.evaluation.registry import CONTENDERS

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
paper_files, paper_protocol, paper_tables, recipes, tables = (
    importlib.import_module(name) for name in ("paper_files", "paper_protocol", "paper_tables", "recipes", "tables")
)

PROPOSAL = {"hidden_dim": 8, "log2_hashmap_size": 9, "num_levels": 2, "max_res": 32, "use_linear": False}
TINY = {
    "steps": 8,
    "shaping_start": 4,
    "rays": 64,
    "shaping": {"decay_steps": 4},
    "model": {
        "num_levels": 3,
        "log2_hashmap_size": 9,
        "max_res": 32,
        "hidden_dim": 16,
        "hidden_dim_color": 16,
        "num_proposal_samples_per_ray": [12, 8],
        "num_nerf_samples_per_ray": 6,
        "proposal_net_args_list": [PROPOSAL, PROPOSAL],
    },
}
REPLICA: dict[str, Any] = {
    "name": "mini-replica",
    "parser": "replica-data",
    "parser_options": {"train_every": 5, "test_offset": 2},
    "scenes": ["room_0", "room_1"],
    "extractor": {"kind": "oracle", "patch_size": 4},
    "methods": {"jacobinerf-lite": TINY},
    "seeds": [0],
    "annotators": [0, 1],
    "tasks": {"semantic-sparse": ["2d", "3d", "unshaped", "teacher", "probe"], "semantic-dense": ["2d", "network"]},
    "stride": 2,
}
SCANNET: dict[str, Any] = {
    **REPLICA,
    "name": "mini-scannet",
    "parser": "scannet-labels",
    "parser_options": {"test_every": 3},
    "folder": "scans/{scene}",
    "scenes": ["scene0000_00"],
    "tasks": {"semantic-sparse": ["2d"], "instance-sparse": ["2d", "teacher"], "instance-dense": ["3d"]},
    "classes": ["wall", "chair", "bathtub"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both miniatures, and a cache of its own."""
    folder = tmp_path_factory.mktemp("paper")
    write_replica(folder, views=12, width=24, height=18)
    write_scannet(folder, views=9, width=24, height=18)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        patch.setenv("PYTHONPATH", paths)
        yield folder


def command(folder: Path, content: dict[str, Any], **options: Any) -> Any:
    """The command on a file with this content."""
    path = folder / f"{content.get('name', 'nameless')}.yml"
    path.write_text(yaml.safe_dump(content))
    defaults = {"data": folder, "work_dir": folder / "work", "results": folder / "results"}
    return paper_protocol.PaperProtocol(path, **{**defaults, **options})


@pytest.fixture(scope="module")
def replica(place: Path) -> Path:
    """The results of one room, made as users make them: in a process of its own."""
    command(place, REPLICA, scenes=("room_0",)).main()
    return place / "results"


def run_here(script: str, job: list[Any], log: Path | None, jobs: int) -> None:
    """A unit in this process instead of one of its own."""
    paper_protocol.unit_job(*map(str, job))


def rows_of(markdown: str, caption: str) -> list[list[str]]:
    """Cells of the table under a caption, without its head."""
    lines = markdown.split(f"**{caption}**")[1].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_replica_tables_have_the_numbers_of_the_reports(place: Path, replica: Path):
    scores = place / "work/mini-replica/room_0/jacobinerf-lite/scores-0"
    assert sorted(path.name for path in scores.iterdir()) == ["semantic-dense.json", "semantic-sparse.json"]
    sparse = json.loads((scores / "semantic-sparse.json").read_text())
    text = (replica / "mini-replica.md").read_text()
    rows = rows_of(text, "Classes, one click per class in one view: mean over scenes")
    contenders = ["2d", "3d", "unshaped", "teacher", "probe"]
    assert [row[:2] for row in rows] == [["jacobinerf-lite", CONTENDERS[name].title] for name in contenders]
    for row, name in zip(rows, contenders, strict=True):
        found = sparse["methods"][name]
        assert len(found["miou"]) == 2  # two draws of the clicks
        assert row[2] == f"{sum(found['miou']) / 2:.3f}"
        assert row[5] == f"{sum(found['total_accuracy']) / 2:.3f}"
        assert row[6] == "1"
    dense = rows_of(text, "Classes, one view labelled whole: mIoU per scene")
    assert [row[1] for row in dense] == [CONTENDERS["2d"].title, CONTENDERS["network"].title]
    assert "Teacher: oracle, patch_size 4; made from the ground truth itself" in text
    assert "jacobinerf-lite: 8 steps, shaped fields from step 4 on." in text
    psnr = rows_of(text, "PSNR of held-out views (dB)")
    assert [row[:3] for row in psnr] == [
        ["jacobinerf-lite", "plain", f"{sparse['psnr_unshaped']:.2f}"],
        ["jacobinerf-lite", "shaped", f"{sparse['psnr']:.2f}"],
    ]
    tex = (replica / "mini-replica.tex").read_text()
    assert f"{CONTENDERS['2d'].title} & {rows[0][2]} &" in tex
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 5


@pytest.mark.slow
def test_nothing_is_made_again_and_only_what_is_new_is_scored(place: Path, replica: Path, monkeypatch):
    def not_wanted(*_: Any) -> None:
        raise AssertionError("a unit that is complete was run")

    monkeypatch.setattr(paper_protocol, "run_apart", not_wanted)
    command(place, REPLICA, scenes=("room_0",)).main()
    monkeypatch.setattr(paper_protocol, "run_apart", run_here)
    checkpoint = next(place.glob("work/mini-replica/room_0/jacobinerf-lite/shaped-0/nerfstudio_models/*.ckpt"))
    path = place / "work/mini-replica/room_0/jacobinerf-lite/scores-0/semantic-dense.json"
    trained, before = checkpoint.stat().st_mtime_ns, json.loads(path.read_text())
    more = {**REPLICA, "tasks": {**REPLICA["tasks"], "semantic-dense": ["2d", "network", "teacher"]}}
    command(place, more, scenes=("room_0",)).main()
    after = json.loads(path.read_text())
    assert set(after["methods"]) == {"2d", "network", "teacher"}
    assert after["methods"]["2d"] == before["methods"]["2d"]
    assert checkpoint.stat().st_mtime_ns == trained


@pytest.mark.slow
def test_tables_come_from_the_numbers_alone(replica: Path, place: Path, tmp_path: Path):
    command(place, REPLICA, tables_only=True).main()  # whatever other tests added is in the text now
    text = (replica / "mini-replica.md").read_text()
    (replica / "mini-replica.md").unlink()
    command(place, REPLICA, data=None, work_dir=tmp_path, tables_only=True).main()
    assert (replica / "mini-replica.md").read_text() == text
    command(place, REPLICA, data=None, work_dir=tmp_path, tables_only=True, contenders=("teacher",)).main()
    rows = rows_of(
        (replica / "mini-replica.md").read_text(), "Classes, one click per class in one view: mIoU per scene"
    )
    assert [row[1] for row in rows] == [CONTENDERS["teacher"].title]
    with pytest.raises(UserError, match="there are no numbers to show"):
        command(place, REPLICA, tables_only=True, scenes=("room_1",)).main()


@pytest.mark.slow
def test_other_settings_are_refused(place: Path, replica: Path, tmp_path: Path):
    with pytest.raises(UserError, match="was made with stride 2, the benchmark now has 1"):
        command(place, {**REPLICA, "stride": 1}, scenes=("room_0",)).main()
    with pytest.raises(UserError, match="has numbers of other settings"):
        command(place, {**REPLICA, "stride": 1}, scenes=("room_0",), work_dir=tmp_path, tables_only=True).main()


@pytest.mark.slow
def test_scannet_has_instances_and_listed_classes(place: Path, monkeypatch):
    monkeypatch.setattr(paper_protocol, "run_apart", run_here)
    command(place, SCANNET).main()
    text = (place / "results/mini-scannet.md").read_text()
    folder = place / "work/mini-scannet/scene0000_00/jacobinerf-lite"
    assert not (folder / "plain-0").exists()  # nobody competes without shaping
    semantic, instances, dense = (
        json.loads((folder / f"scores-0/{task}.json").read_text())
        for task in ("semantic-sparse", "instance-sparse", "instance-dense")
    )
    assert "wall" in semantic["methods"]["2d"]["class_iou"]
    assert all(name.startswith("instance ") for name in instances["methods"]["teacher"]["class_iou"])
    assert set(dense["methods"]["3d"]["class_iou"]) == set(instances["methods"]["2d"]["class_iou"])
    assert len(dense["methods"]["3d"]["miou"]) == 1  # nothing to draw
    row = rows_of(text, "Classes, one click per class in one view: mean over scenes")[0]
    listed = [semantic["methods"]["2d"]["class_iou"][name] for name in ("wall", "chair")]
    assert row[6] == f"{sum(map(sum, listed)) / 4:.3f}"
    assert "Listed classes that occur in none of these scenes: bathtub." in text
    assert len(rows_of(text, "Instances, one click per instance in one view: mIoU per scene")) == 2


@pytest.mark.slow
def test_an_interrupted_training_goes_on(place: Path, tmp_path: Path):
    benchmark = paper_files.Benchmark.model_validate(REPLICA)
    whole = benchmark.recipe("room_0", "jacobinerf-lite")
    half = replace(whole, steps=4)
    recipes.train_variant(half, place / "room_0", tmp_path, "plain", 0)
    folder = recipes.run_folder(tmp_path, whole, "plain", 0)
    assert recipes.steps_done(folder) == 4
    assert not recipes.is_trained(tmp_path, whole, "plain", 0)
    trainer = recipes.train_variant(whole, place / "room_0", tmp_path, "plain", 0, resume=True)
    assert trainer._start_step == 4
    assert recipes.steps_done(folder) == 8
    assert recipes.is_trained(tmp_path, whole, "plain", 0)


def test_a_failed_unit_does_not_stop_the_others(place: Path, tmp_path: Path, monkeypatch, capsys):
    run: list[str] = []

    def fail_first(script: str, job: list[Any], log: Path | None, jobs: int) -> None:
        run.append(job[4])
        if len(run) == 1:
            raise UserError("failed: no colours left")

    monkeypatch.setattr(paper_protocol, "run_apart", fail_first)
    (tmp_path / "room_0").mkdir()
    (tmp_path / "room_1").mkdir()
    with pytest.raises(UserError, match="mini-replica: 1 of 2 units failed"):
        command(tmp_path, REPLICA).main()
    assert run == ["room_0", "room_1"]
    assert "error: room_0, jacobinerf-lite, seed 0: failed: no colours left" in capsys.readouterr().err


def test_a_job_that_fails_is_told_with_its_last_line(tmp_path: Path):
    script = tmp_path / "job.py"
    script.write_text("import sys\nprint('working')\nprint('error: the lamp is off', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(UserError, match=r"failed: the lamp is off \(all of it is in .*log"):
        recipes.run_apart(str(script), [], tmp_path / "log", 2)
    with pytest.raises(UserError, match="failed, see above"):
        recipes.run_apart(str(script), [], None, 1)


WRONG = {
    "unknown key": ({**REPLICA, "sceens": []}, "unknown key sceens"),
    "missing key": ({key: value for key, value in REPLICA.items() if key != "scenes"}, "no key scenes"),
    "unknown method": ({**REPLICA, "methods": {"nerf": {}}}, "unknown method nerf: expected one of jacobinerf, "),
    "unknown setting": ({**REPLICA, "methods": {"jacobinerf": {"stepps": 3}}}, "unknown key methods.jacobinerf.stepps"),
    "unknown contender": (
        {**REPLICA, "tasks": {"semantic-sparse": ["dfff"]}},
        "unknown contender dfff: expected one of",
    ),
    "unknown task": ({**REPLICA, "tasks": {"depth": ["2d"]}}, "tasks.depth: found 'depth'"),
    "unknown parser": ({**REPLICA, "parser": "colmap"}, "parser: found 'colmap': unknown dataparser"),
    "parser option": ({**REPLICA, "parser_options": {"every": 5}}, "parser replica-data has no option every"),
    "option's type": ({**REPLICA, "parser_options": {"train_every": "often"}}, "train_every: found 'often'"),
    "model option": ({**REPLICA, "methods": {"jacobinerf": {"model": {"depth": 1}}}}, "model has no option depth"),
    "teacher": ({**REPLICA, "extractor": {"kind": "clip"}}, "teacher clip"),
    "late shaping": ({**REPLICA, "methods": {"jacobinerf": {"steps": 100}}}, "shaping starts at step 6000 of 100"),
    "folder": ({**REPLICA, "folder": "scans"}, "expected a folder with {scene} in it"),
    "no content": ([], "has no keys"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_in_the_file_are_one_line_that_names_it(case: str, tmp_path: Path):
    content, message = WRONG[case]
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as raised:
        paper_files.read_benchmark(path)
    text = str(raised.value)
    assert text.startswith(str(path))
    assert message.lower() in text.lower()
    assert "\n" not in text


def test_a_file_that_is_not_there_or_no_yaml(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.yml cannot be read \(No such file"):
        paper_files.read_benchmark(tmp_path / "none.yml")
    (tmp_path / "broken.yml").write_text("name: [1\nscenes: }")
    with pytest.raises(UserError, match=r"broken\.yml is no YAML") as raised:
        paper_files.read_benchmark(tmp_path / "broken.yml")
    assert "\n" not in str(raised.value)


def test_mistakes_in_the_command(tmp_path: Path, capsys):
    with pytest.raises(UserError, match=r"unknown scene attic: .* has room_0, room_1"):
        command(tmp_path, REPLICA, scenes=("attic",)).main()
    with pytest.raises(UserError, match="unknown method nerf: expected one of"):
        command(tmp_path, REPLICA, methods=("nerf",)).main()
    with pytest.raises(UserError, match="unknown contender me: expected one of"):
        command(tmp_path, REPLICA, contenders=("me",)).main()
    with pytest.raises(UserError, match="--steps-scale 0"):
        command(tmp_path, REPLICA, steps_scale=0).main()
    with pytest.raises(UserError, match="no data: give --data"):
        command(tmp_path, REPLICA, data=None).main()
    with pytest.raises(UserError, match="scene room_1: no folder"):
        command(tmp_path, REPLICA).main()
    assert "error: scene room_0: no folder" in capsys.readouterr().err


def test_a_damaged_file_of_numbers_is_named(tmp_path: Path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/mini-replica.json").write_text("{}")
    with pytest.raises(UserError, match=r"mini-replica\.json is no file of scores"):
        command(tmp_path, REPLICA, tables_only=True).main()


def test_the_shipped_files_are_right_and_name_no_data():
    for path in sorted((REPOSITORY / "configs").glob("paper-*.yml")):
        benchmark = paper_files.read_benchmark(path)
        assert benchmark.name == path.stem
        assert "/" not in benchmark.folder.replace("scans/", "")
    replica = paper_files.read_benchmark(REPOSITORY / "configs/paper-replica.yml")
    assert replica.parser_options["train_every"] == 5
    assert replica.parser_options["test_offset"] == 2
    assert replica.scene_folder(Path("data"), "room_0") == Path("data/room_0")


def test_a_scaled_schedule_keeps_its_proportions_and_a_name_of_its_own(tmp_path: Path):
    scaled = {"steps": 1000, "shaping_start": 500, "shaping": {"decay_steps": 24000}}
    content = {**REPLICA, "methods": {"jacobinerf": scaled, "jacobinerf-lite": None}}
    benchmark = paper_files.Benchmark.model_validate(content)
    config = benchmark.recipe("room_0", "jacobinerf", 0.1).make_config("shaped", 3)
    assert (config.max_num_iterations, config.pipeline.model.shaping_start_step) == (100, 50)
    assert config.pipeline.model.shaping.decay_steps == 2400
    assert config.machine.seed == 3
    lite = benchmark.recipe("room_0", "jacobinerf-lite").make_config("plain", 0)
    assert lite.max_num_iterations == jacobinerf_lite.config.max_num_iterations
    assert not lite.pipeline.model.shaping.active
    assert paper_protocol.Place(benchmark, tmp_path, steps_scale=0.1).name == "mini-replica-x0.1"


def value(scene: str, seed: int, number: float) -> Any:
    return paper_tables.Value(scene, seed, number)


def test_means_are_over_scenes_and_ranges_over_seeds_that_have_them_all():
    whole = [value("a", 0, 0.1), value("b", 0, 0.3), value("a", 1, 0.3), value("b", 1, 0.5)]
    assert paper_tables.summary(whole) == "0.300 (0.200–0.400)"
    assert paper_tables.summary(whole[:3]) == "0.250"  # b's one run weighs as much as a's two; one seed is whole
    assert paper_tables.summary(whole[:1]) == "0.100"


def test_listed_classes_are_averaged_where_they_occur():
    iou = {"wall": [0.8, 0.6], "chair": [None, 0.2], "lamp": [0.0, 0.0]}
    assert paper_tables.miou_of(iou, ["wall", "chair", "boat"]) == pytest.approx((0.8 + 0.4) / 2)
    assert paper_tables.miou_of(iou, ["boat"]) is None


def test_markdown_and_latex_of_one_table():
    table = tables.Table("50 % of a_b", ["name", "number"], [["x & y", "0.1 (0.0–0.2)"]])
    assert tables.markdown(table).splitlines()[2:] == [
        "| name | number |",
        "| --- | ---: |",
        "| x & y | 0.1 (0.0–0.2) |",
    ]
    text = tables.latex(table, "tab:x")
    assert r"\caption{50 \% of a\_b}" in text
    assert r"x \& y & 0.1 (0.0--0.2) \\" in text
    assert r"\begin{tabular}{lr}" in text
