"""Words in the panel, without a browser: what is said of them, and what they make of the selected label."""

import threading
from collections.abc import Iterator

import pytest
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.viewer import Viewer
from test_panel import render, saved, settle, wait_for
from tiny import start, tiny_capture, tiny_config
from viewer_process import free_port

from jacobinerf_ns.annotations.schema import Annotations, TextSeed
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.panel.panel import Panel
from jacobinerf_ns.pipeline import JacobiNeRFPipeline


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("panel_words")
    config = tiny_config(tiny_capture(folder / "room"), folder / "out", steps=8)
    config.pipeline.datamanager.extractor = OracleConfig(noise=0.1, patch_size=1, by_name=True)
    trainer = start(config)
    trainer.train()
    trainer.pipeline.eval()
    found = Viewer(
        ViewerConfig(websocket_port=free_port()),
        trainer.base_dir / "viewer.log",
        folder,
        trainer.pipeline,
        train_lock=threading.Lock(),
    )
    found.init_scene(trainer.pipeline.datamanager.train_dataset, "completed")  # pyright: ignore
    yield found
    found.viser_server.stop()


@pytest.fixture
def panel(viewer: Viewer) -> Panel:
    assert isinstance(viewer.pipeline, JacobiNeRFPipeline)
    found = viewer.pipeline.panel
    found.desk.do(lambda: found.desk.change(lambda _: Annotations()))
    settle(found)
    return found


def ask(panel: Panel, words: str) -> str:
    """Types words, presses `Find`, and returns what the status line says in the end."""
    panel.words._words.value = words
    panel.desk.do(panel.words.ask)
    settle(panel)
    wait_for(lambda: not panel.words._button.disabled)
    settle(panel)
    return panel.desk._status.content


def test_words_make_a_label_of_their_name_and_add_to_it(panel: Panel):
    said = ask(panel, " wall ")
    assert said.startswith("found **wall** at ")
    assert "deviations better than everyday words do" in said
    (label,), (seed,) = saved(panel).labels, saved(panel).seeds
    assert isinstance(seed, TextSeed)
    assert (label.name, seed.words, seed.label, seed.model) == ("wall", "wall", label.id, "oracle by name")
    assert f"at {len(seed.places)} places" in said
    render(panel)
    assert panel._report.shares[label.id] > 0
    assert "stands on now" in ask(panel, "floor")
    assert [label.name for label in saved(panel).labels] == ["wall"]
    assert len(saved(panel).seeds) == 2
    panel.desk.do(panel.desk.add_label)
    settle(panel)
    ask(panel, "floor")
    assert [label.name for label in saved(panel).labels] == ["wall", "floor"]
    panel.desk.do(panel.clicks.undo)
    settle(panel)
    assert [label.name for label in saved(panel).labels] == ["wall", "object 1"]


def test_what_is_not_there_adds_nothing_and_what_cannot_be_asked_is_said(panel: Panel):
    assert ask(panel, "giraffe").startswith("nothing like **giraffe** here, nothing was added")
    for words, said in ((" ", "empty text given"), ("x" * 10_000, "10,000 characters"), ("a\x1bb", "U+001B")):
        assert said in ask(panel, words)
    assert saved(panel) == Annotations()


def test_who_waits_for_an_answer_goes_on_and_the_label_may_go_meanwhile(panel: Panel, monkeypatch: pytest.MonkeyPatch):
    goes_on = threading.Event()
    own = panel.words._find

    def slow(words: str, lock: object):
        assert goes_on.wait(20)
        return own(words, lock)  # pyright: ignore

    monkeypatch.setattr(panel.words, "_find", slow)
    panel.desk.do(panel.desk.add_label)
    panel.words._words.value = "wall"
    panel.desk.do(panel.words.ask)
    settle(panel)
    assert "looking for **wall**" in panel.desk._status.content
    panel.desk.do(panel.words.ask)
    settle(panel)
    assert "one question at a time" in panel.desk._status.content
    panel.desk.do(panel.labels.delete)
    settle(panel)
    goes_on.set()
    wait_for(lambda: not panel.words._button.disabled)
    settle(panel)
    assert [label.name for label in saved(panel).labels] == ["wall"]


def test_an_error_lets_ask_again(panel: Panel, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object):
        raise UserError("model folder /gone does not exist")

    monkeypatch.setattr(panel.words, "_find", fail)
    assert "model folder /gone does not exist" in ask(panel, "wall")


def test_the_field_is_asked_under_the_viewers_lock(panel: Panel, monkeypatch: pytest.MonkeyPatch):
    pipeline = panel._host
    assert isinstance(pipeline, JacobiNeRFPipeline)
    pipeline.model.loads += 1  # other weights: the field has to be asked
    trace, held = pipeline.model.trace, []

    def watched(rays):
        held.append(panel.viewer.train_lock.locked())  # pyright: ignore
        return trace(rays)

    monkeypatch.setattr(pipeline.model, "trace", watched)
    ask(panel, "giraffe")
    assert held
    assert all(held)
