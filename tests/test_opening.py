"""Opening a run: a config.yml and a checkpoint that are not what training wrote end in one line, and run nothing."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.utils import eval_utils
from test_bad_input import command
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations.schema import Annotations, Click, Label
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.cli.annotate import Annotate
from jacobinerf_ns.cli.export import Export
from jacobinerf_ns.cli.propagate import Propagate
from jacobinerf_ns.compat.opening import check_what_is_opened
from jacobinerf_ns.errors import EXIT_CODE, UserError, one_line_exit
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.config_file import read_config
from jacobinerf_ns.run.opened import open_run
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

OLD_CONFIG = Path(__file__).parent / "data" / "config_before_the_rooms.yml"
CLASS = "jacobinerf_ns.trainer.JacobiNeRFTrainerConfig"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one checkpoint and one click."""
    folder = tmp_path_factory.mktemp("opening")
    trainer = start(tiny_config(tiny_capture(folder / "room"), folder / "out"))
    trainer.save_checkpoint(3)
    photo = trainer.pipeline.datamanager.train_dataset.image_filenames[0].name
    click = Click(label=1, image=photo, width=24, height=18, pixel=(12, 9))
    labels = (Label(id=1, name="chair", colour=(1, 2, 3)),)
    write_annotations(trainer.base_dir / "annotations.json", Annotations(labels=labels, seeds=(click,)))
    return trainer.base_dir


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, where the config's own paths still lead."""
    copy = tmp_path / "e" / "jacobinerf-lite" / "run"
    shutil.copytree(trained, copy)
    config = yaml.load((trained / "config.yml").read_text(), Loader=yaml.Loader)
    config.output_dir, config.experiment_name, config.pipeline.annotations = tmp_path, "e", copy / "annotations.json"
    (copy / "config.yml").write_text(yaml.dump(config))
    return copy


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def check(action: Callable[[], Any], expected: str = "") -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught, one_line_exit():
            action()
        assert caught.value.code == EXIT_CODE
        line = capfd.readouterr().err
        lines = [line for line in line.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in line
        assert expected in lines[0], lines[0]
        return lines[0]

    return check


class Mischief:
    """An object that runs a command when a trusting reader meets it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def _saved(content: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


BAD_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte changed in its middle": lambda path: path.write_bytes(path.read_bytes()[:40] + b"\xff" * 40),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"step": 1})),
    "code": lambda path: torch.save({"step": 3, "pipeline": Mischief(path.parents[1] / "done")}, path),
    "code as a plain pickle": lambda path: path.write_bytes(pickle.dumps(Mischief(path.parents[1] / "done"))),
    "a list": _saved([1, 2]),
    "a tensor": _saved(torch.zeros(3)),
    "no step": _saved({"pipeline": {}}),
    "no pipeline": _saved({"step": 3}),
    "a step that is a text": _saved({"step": "3", "pipeline": {}}),
    "a pipeline of numbers": _saved({"step": 3, "pipeline": {"_model.a": 5}}),
    "a pipeline without parameters": _saved({"step": 3, "pipeline": {}}),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "none": lambda path: path.unlink(),
    "no folder of checkpoints": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_checkpoints(run: Path, refused: Callable[..., str], case: str) -> None:
    """Through our commands, and through the function that opens runs for `ns-eval`, `ns-render` and `ns-viewer`."""
    place = next((run / "nerfstudio_models").glob("*.ckpt"))
    BAD_CHECKPOINTS[case](place)
    output = run.parent / "masks"
    refused(lambda: command(Propagate, "--load-config", run / "config.yml", "--output-dir", output))
    config = read_config(run / "config.yml")
    pipeline = object.__new__(JacobiNeRFPipeline)
    torch.nn.Module.__init__(pipeline)
    pipeline._model = torch.nn.Linear(1, 1)  # pyright: ignore[reportAttributeAccessIssue]
    check_what_is_opened(JacobiNeRFPipeline)
    refused(lambda: eval_utils.eval_load_checkpoint(config, pipeline))
    assert not output.exists()
    assert not (run / "done").exists()
    assert len(read_annotations(run / "annotations.json").seeds) == 1


def test_a_whole_run_opens_by_both_doors(run: Path) -> None:
    opened = open_run(run / "config.yml")
    assert opened.step == 3
    _, pipeline, path, step = eval_utils.eval_setup(run / "config.yml")
    assert (step, path.name) == (3, "step-000000003.ckpt")
    for mine, theirs in zip(opened.pipeline.parameters(), pipeline.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_full_size_models_and_other_methods_configs_are_read(tmp_path: Path) -> None:
    """Everything that nerfstudio's own methods write too: annotations can be made for their runs."""
    for name in ("jacobinerf", "jacobinerf-lite", "jacobinerf-paper", "nerfacto", "splatfacto", "instant-ngp"):
        (tmp_path / "config.yml").write_text(yaml.dump(all_methods[name]))
        assert read_config(tmp_path / "config.yml") == all_methods[name]
    assert isinstance(read_config(OLD_CONFIG), JacobiNeRFTrainerConfig)


def _edited(change: Callable[[Any], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        config = yaml.load(text, Loader=yaml.Loader)
        change(config)
        return yaml.dump(config)

    return edit


def _set(place: str, value: Any) -> Callable[[str], str]:
    def change(config: Any) -> None:
        *parents, last = place.split(".")
        for name in parents:
            config = getattr(config, name)
        setattr(config, last, value)

    return _edited(change)


BAD_CONFIGS: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda text: "",
    "scalar": lambda text: "5",
    "list": lambda text: "[1, 2]",
    "mapping": lambda text: "pipeline: 5",
    "no text": lambda text: b"\xff\xfe\x00",
    "no YAML": lambda text: "{" * 50,
    "nested": lambda text: "[" * 5_000,
    "cut": lambda text: text[: len(text) // 2],
    "cut within a tag": lambda text: text[: text.index("!!python") + 20],
    "too large": lambda text: text + "\n#" + "x" * (1 << 19),
    "unknown class": lambda text: text.replace(CLASS, "jacobinerf_ns.trainer.Gone"),
    "unknown module": lambda text: text.replace(CLASS, "jacobinerf_ns.gone.Gone"),
    "unknown member of an enumeration": lambda text: text.replace("- ETA (time)", "- never"),
    "a class of another kind": lambda text: text.replace(CLASS, "jacobinerf_ns.model.JacobiNeRFModel"),
    "pipeline null": _set("pipeline", None),
    "pipeline a text": _set("pipeline", "mine"),
    "datamanager null": _set("pipeline.datamanager", None),
    "dataparser a number": _set("pipeline.datamanager.dataparser", 7),
    "model a list": _set("pipeline.model", []),
    "steps a text": _set("max_num_iterations", "many"),
    "output_dir a number": _set("output_dir", 5),
    "a target that is a number": _set("pipeline._target", 5),
    "optimizers a list": _set("optimizers", [1]),
    "another method's run": lambda text: yaml.dump(all_methods["nerfacto"]),
}
CODE = {
    "apply": "!!python/object/apply:os.system ['touch DONE']",
    "apply in a config": f"!!python/object:{CLASS}\npipeline: !!python/object/apply:os.system ['touch DONE']",
    "new": "!!python/object/new:os.system ['touch DONE']",
    "apply with arguments": "!!python/object/apply:subprocess.run {args: [[touch, DONE]]}",
    "subprocess": "!!python/object/apply:subprocess.Popen [[touch, DONE]]",
    "a module": "!!python/module:os",
    "a function of nerfstudio": "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch DONE']",
    "through an import of nerfstudio": "!!python/object/apply:nerfstudio.utils.scripts.subprocess.run [[touch, DONE]]",
    "eval": '!!python/object/apply:builtins.eval [\'__import__("os").system("touch DONE")\']',
    "a name": "!!python/name:os.system",
    "a name in a config": f"!!python/object:{CLASS}\n_target: !!python/name:nerfstudio.utils.scripts.run_command ''",
    "a state": "!!python/object:builtins.object {__class__: 1}",
    "entries of the class": f"!!python/object:{CLASS}\n__class__: !!python/name:jacobinerf_ns.model.JacobiNeRFModel ''",
}


def test_a_cut_config_is_found_wherever_it_was_cut(run: Path) -> None:
    place = run / "config.yml"
    whole = place.read_text()
    ends = [end for end, letter in enumerate(whole) if letter == "\n"]
    assert len(ends) > 100
    for end in (*ends[:-1], *range(ends[-2] + 1, ends[-1])):
        place.write_text(whole[: end + 1] if end in ends else whole[:end])
        with pytest.raises(UserError, match=r"config\.yml"):
            read_config(place)


@pytest.mark.parametrize("case", [*BAD_CONFIGS, *CODE])
def test_configs(run: Path, refused: Callable[..., str], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    place = run / "config.yml"
    text = CODE[case] if case in CODE else BAD_CONFIGS[case](place.read_text())
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = (run / "annotations.json").read_bytes()
    for door, arguments in ((Propagate, ["--output-dir", "a"]), (Export, ["--output-dir", "b", "--label", "chair"])):
        refused(lambda door=door, arguments=arguments: command(door, "--load-config", place, *arguments), "config.yml")
    if case != "another method's run":
        refused(lambda: command(Annotate, "--load-config", place, "--label", "lamp"), "config.yml")
    assert not (run / "DONE").exists()
    assert (run / "annotations.json").read_bytes() == before


def test_a_resume_needs_what_training_saved(run: Path, tmp_path: Path) -> None:
    place = next((run / "nerfstudio_models").glob("*.ckpt"))
    content = torch.load(place, weights_only=True)
    torch.save({key: content[key] for key in ("step", "pipeline")}, place)
    config = read_config(run / "config.yml")
    config.load_dir, config.output_dir, config.method_name = place.parent, tmp_path / "again", "jacobinerf-lite"
    with pytest.raises(SystemExit) as caught:
        start(config)
    assert caught.value.code == EXIT_CODE


def test_python_gets_the_error_itself(run: Path) -> None:
    (run / "config.yml").write_text("")
    with pytest.raises(UserError, match=r"config\.yml is not a config\.yml that training wrote"):
        open_run(run / "config.yml")
