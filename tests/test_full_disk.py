"""A disk that fills up, and places that are taken: one line, and what was there stays as it was."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import command
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.cli.features import Features
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.handcrafted import HandcraftedConfig

HANDCRAFTED = ("handcrafted", "--cell", "1")


@contextmanager
def full_disk(left: int = 1 << 15) -> Iterator[None]:
    """Let no file grow beyond so many bytes: for what writes it, that is a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def event_writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep those of earlier trainings, which nerfstudio goes on writing to, out of a full disk."""
    from nerfstudio.utils import writer  # not above: it is imported in a circle, which has to be entered elsewhere

    own: list[Any] = []
    monkeypatch.setattr(writer, "EVENT_WRITERS", own)
    yield
    for one in own:
        # What it has not written it would write at the end of the program.
        with suppress(OSError):
            one.tb_writer.close()


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_capture(tmp_path_factory.mktemp("full") / "room")


def features(capture: Path, cache: Path, *more: str) -> Any:
    return command(Features, "--data", capture, "--cache-dir", cache, *more, *HANDCRAFTED)


def test_features_on_a_full_disk_keep_what_is_done(capture: Path, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=r"cannot be written \(.*File too large.*has room"):
        features(capture, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    done = features(capture, tmp_path)
    first = done.filled.paths[0].read_bytes()
    done.filled.paths[1].unlink()
    with full_disk(), pytest.raises(UserError, match="cannot be written"):
        features(capture, tmp_path)
    assert done.filled.paths[0].read_bytes() == first
    assert sorted(tmp_path.rglob("*.safetensors")) == sorted(set(done.filled.paths) - {done.filled.paths[1]})


def test_a_projection_on_a_full_disk(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(UserError, match=r"projection\.pt cannot be written \(.*unexpected pos"):
        features(capture, tmp_path, "--feature-dim", "2")
    assert not list(tmp_path.rglob("*.pt"))


def _a_file(cache: Path, folder: Path) -> None:
    cache.write_text("")


def _a_file_inside(cache: Path, folder: Path) -> None:
    cache.mkdir()
    (cache / folder.name).write_text("")


PLACES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "the cache is a file": (_a_file, "cannot be made"),
    "the cache is inside of a file": (lambda cache, folder: cache.parent.write_text(""), "cannot be made"),
    "a teacher's folder is a file": (_a_file_inside, "cannot be made"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_of_features_that_are_taken(capture: Path, tmp_path: Path, case: str) -> None:
    folder = features(capture, tmp_path / "first").folder
    take, message = PLACES[case]
    cache = tmp_path / "a" / "cache"
    if case != "the cache is inside of a file":
        cache.parent.mkdir()
    take(cache, folder)
    with pytest.raises(UserError, match=message):
        features(capture, cache)


def test_a_folder_where_a_feature_file_belongs(capture: Path, tmp_path: Path) -> None:
    path = features(capture, tmp_path).filled.paths[2]
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{path.name} is no file, and a feature file belongs there"):
        features(capture, tmp_path)


@pytest.mark.parametrize("cell", [0, -1, 257, 100_000])
def test_options_without_end(cell: int) -> None:
    with pytest.raises(UserError, match=r"expected 1\.\.256"):
        HandcraftedConfig(cell).setup()


def test_training_on_a_full_disk_keeps_the_last_checkpoint(capture: Path, tmp_path: Path) -> None:
    trainer = start(tiny_config(capture, tmp_path))
    trainer.save_checkpoint(1)
    before = {path.name: path.read_bytes() for path in trainer.checkpoint_dir.iterdir()}
    with full_disk(), pytest.raises(UserError, match=r"step-000000002\.ckpt cannot be written \(.*--load-dir"):
        trainer.save_checkpoint(2)
    assert {path.name: path.read_bytes() for path in trainer.checkpoint_dir.iterdir()} == before
    assert not list(trainer.base_dir.glob(".step*"))


def test_training_on_a_full_disk_is_one_line(capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Here the first to notice is tensorboard, in a thread of its own."""
    config = tiny_config(capture, tmp_path, steps=20)
    config.logging.steps_per_log = 1
    trainer = start(config)
    capfd.readouterr()
    with full_disk(1 << 12), pytest.raises(SystemExit):
        trainer.train()
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if line.startswith("error: ") and "--load-dir" in line]


@pytest.mark.parametrize("case", ["a file", "a full disk"])
def test_places_of_runs_that_cannot_be_written(
    capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    config = tiny_config(capture, tmp_path / "out")
    config.set_timestamp()
    if case == "a file":
        (tmp_path / "out").write_text("")
    with full_disk(1 << 12 if case == "a full disk" else 1 << 20), pytest.raises(SystemExit):
        config.save_config()
    assert "config.yml cannot be written" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.yml"))


@pytest.mark.parametrize("name", ["", "sheet", "sheet.jpg", "room/images/0000.png", "room/transforms.json"])
def test_previews_overwrite_no_photo(capture: Path, tmp_path: Path, name: str) -> None:
    target = (capture.parent if name.startswith("room") else tmp_path) / name
    before = target.read_bytes() if target.is_file() else None
    with pytest.raises(UserError, match="--preview"):
        features(capture, tmp_path / "cache", "--preview", str(target))
    assert (target.read_bytes() if target.is_file() else None) == before
    assert not (tmp_path / "cache").exists()


def test_a_preview_that_cannot_be_written(capture: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"sheet\.png cannot be written"):
        features(capture, tmp_path / "cache", "--preview", str(tmp_path / "file" / "sheet.png"))
