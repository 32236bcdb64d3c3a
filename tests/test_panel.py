"""The panel without a browser: its thread, its words, its jobs, and what clicks do to the annotation file."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.render_state_machine import RenderAction
from nerfstudio.viewer.utils import CameraState
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException, SetTrace
from tiny import start, tiny_capture, tiny_config
from viewer_process import free_port

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations, SpaceBox, SpaceClick
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.compat.fair_lock import FairLock
from jacobinerf_ns.core.plateaus import Plateaus
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.views import SCREEN
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.desk import NEW_VOID
from jacobinerf_ns.panel.job import Job
from jacobinerf_ns.panel.opening_view import OpeningView
from jacobinerf_ns.panel.panel import CPU_RESOLUTION, Panel
from jacobinerf_ns.panel.renderer import SteadyRenderer
from jacobinerf_ns.panel.worker import Worker
from jacobinerf_ns.pipeline import JacobiNeRFPipeline


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def assert_comes(event: threading.Event) -> None:
    assert event.wait(10)


class Stage:
    """A worker whose tasks write down what they did."""

    def __init__(self) -> None:
        self.done, self.errors, self.idle = list[str](), list[Exception](), 0
        self.worker = Worker(self.errors.append, self._count)
        self.worker.start()

    def post(self, name: str, **options: Any) -> None:
        self.worker.post(lambda: self.done.append(name), **options)

    def _count(self) -> None:
        self.idle += 1


def test_a_frame_is_not_stopped_while_a_lock_is_let_go():
    """Nerfstudio's tracer raises at any line, also at that which releases a lock: then nobody gets it any more."""
    stage, renderer = Stage(), SteadyRenderer.__new__(SteadyRenderer)
    renderer.interrupt_render_flag = True
    with SetTrace(renderer.check_interrupt):
        stage.post("from a frame")
    wait_for(lambda: stage.done == ["from a frame"])
    with pytest.raises(IOChangeException):
        renderer._stop_if_stale()
    renderer._stop_if_stale()  # asked once, stopped once


STATE = CameraState(fov=1.0, aspect=1.0, c2w=torch.eye(4)[:3], camera_type=CameraType.PERSPECTIVE)


@pytest.fixture
def renderer(viewer: Viewer, panel: Panel, monkeypatch: pytest.MonkeyPatch) -> SteadyRenderer:
    """Of a tab whose camera rests, with its large frame on the screen."""
    client: Any = None
    found = SteadyRenderer(viewer, 10.0, client, screen=panel.screen, failed=lambda error: None)
    monkeypatch.setattr(viewer, "get_camera_state", lambda _: STATE)
    monkeypatch.setattr(found, "_calculate_image_res", lambda _: (4, 4))
    monkeypatch.setattr("jacobinerf_ns.panel.renderer.IDLE_SECONDS", 0.01)
    found.state = "high"
    found._render_img(STATE)
    assert found._take() is None
    return found


def test_a_frame_that_is_asked_for_while_another_is_taken_is_not_lost(renderer: SteadyRenderer):
    """Nerfstudio's thread reads what is asked for, and forgets what is asked for a moment later."""
    asking: list[threading.Thread] = []

    class Trigger(threading.Event):
        def clear(self) -> None:
            super().clear()
            if not asking:
                asking.append(threading.Thread(target=renderer.refresh))
                asking[0].start()
                asking[0].join(0.2)  # It is made to wait; without a lock it would be done.

    renderer.render_trigger = Trigger()
    renderer.action(RenderAction("step", STATE))
    assert renderer._take() is not None
    asking[0].join(10)
    second = renderer._take()
    assert second is not None
    assert second.action == "step"
    assert renderer._take() is None


def test_what_the_screen_does_not_show_is_rendered_though_nobody_asks(
    viewer: Viewer, renderer: SteadyRenderer, monkeypatch: pytest.MonkeyPatch
):
    pipeline_of(viewer).model.loads += 1
    stale = renderer._take()
    assert stale is not None
    assert stale.action == "step"
    renderer._render_img(STATE)
    assert renderer._take() is None
    elsewhere = CameraState(fov=0.5, aspect=1.0, c2w=STATE.c2w, camera_type=CameraType.PERSPECTIVE)
    monkeypatch.setattr(viewer, "get_camera_state", lambda _: elsewhere)
    moved = renderer._take()
    assert moved is not None
    assert (moved.action, renderer.state) == ("move", "low_move")


def test_a_message_that_had_to_wait_comes_before_the_next(viewer: Viewer, monkeypatch: pytest.MonkeyPatch):
    """viser sends at once where it can: then what was replaced a moment later is what stays on the page."""
    server, sent, waiting = viewer.viser_server._websock_server, list[Any](), list[Any]()
    monkeypatch.setattr(server, "unsafe_send_message", sent.append)
    monkeypatch.setattr(server._thread_executor, "submit", lambda run, *with_: waiting.append((run, with_)))
    with server.atomic():
        server.queue_message("looking")  # pyright: ignore
    server.queue_message("found")  # pyright: ignore
    for run, arguments in waiting:
        run(*arguments)
    assert sent == ["looking", "found"]


def test_a_tab_that_has_no_thread_yet_is_no_error(viewer: Viewer):
    """Nerfstudio asks all tabs that are connected for a frame, in the middle of training too."""
    viewer.render_statemachines[99].action(RenderAction("step", STATE))
    assert 99 not in viewer.render_statemachines


def test_a_fair_lock_is_given_in_the_order_of_asking():
    lock, order, threads = FairLock(), [], []

    def take(name: int) -> None:
        with lock:
            order.append(name)

    with lock:
        for name in range(8):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            wait_for(lambda: len(lock._gates) == len(threads))
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))
    with lock:
        pass


def test_who_lets_a_fair_lock_go_does_not_get_it_before_the_others():
    """What starved training: a thread that draws one frame after the other."""
    lock, steps, enough = FairLock(), 0, threading.Event()

    def draw() -> None:
        while not enough.is_set():
            with lock:
                time.sleep(0.002)

    tabs = [threading.Thread(target=draw) for _ in range(2)]
    for tab in tabs:
        tab.start()
    begun = time.monotonic()
    while steps < 50:
        with lock:
            steps += 1
    enough.set()
    for tab in tabs:
        tab.join(10)
    assert time.monotonic() - begun < 5.0


def test_tasks_are_done_in_order_and_errors_end_only_their_own():
    stage = Stage()
    stage.post("first")
    stage.worker.post(lambda: 1 // 0)  # pyright: ignore
    stage.post("second")
    wait_for(lambda: stage.done == ["first", "second"])
    assert [type(error) for error in stage.errors] == [ZeroDivisionError]
    wait_for(lambda: stage.idle > 0)


def test_of_tasks_with_one_key_the_newest_that_waits_is_done():
    stage, gate = Stage(), threading.Event()
    stage.worker.post(lambda: assert_comes(gate))
    for number in range(5):
        stage.post(f"slider {number}", key="slider")
    assert stage.worker.waits("slider")
    gate.set()
    wait_for(lambda: stage.done == ["slider 4"])
    assert not stage.worker.waits("slider")


def test_however_much_there_is_to_do_the_worker_looks_around():
    """Reports of frames that come fast: a change from outside, and the end of a job, would not be seen."""
    stage, enough = Stage(), threading.Event()

    def again() -> None:
        time.sleep(0.001)
        if not enough.is_set():
            stage.worker.post(again)

    stage.worker.post(again)
    wait_for(lambda: stage.idle > 1, seconds=5)
    enough.set()


def test_typing_waits_for_more_but_is_done_before_a_button():
    stage = Stage()
    stage.post("na", key="name", delay=30.0)
    stage.post("name", key="name", delay=30.0)
    time.sleep(0.05)
    assert stage.done == []
    stage.post("button")
    wait_for(lambda: stage.done == ["name", "button"], seconds=2)


def test_names_are_never_markdown():
    assert texts.plain("a|b *c* {d} <e>") == r"a\|b \*c\* \{d\} \<e\>"
    annotations, label = changes.add_label(Annotations(), "| {x} |")
    rows = texts.table(annotations, {label.id: 0.5}, None).splitlines()
    assert len(rows) == 3
    assert rows[2].count(" | ") == 3


def test_the_table_counts_seeds_and_shares():
    annotations, chair = changes.add_label(Annotations(), "chair")
    annotations, table = changes.add_label(annotations, "table")
    for negative in (False, False, True):
        seed = SpaceClick(label=chair.id, negative=negative, origin=(0, 0, 0), direction=(0, 0, 1))
        annotations = changes.add_seed(annotations, seed)
    rows = texts.table(annotations, {chair.id: 0.126, table.id: 0.0}, table.id).splitlines()
    assert rows[2:] == ["| chair | 2 | 1 | 13 % |", "| **table** | 0 | 0 | – |"]
    assert [texts.percent(share) for share in (0.0, 0.004, 1.0)] == ["none", "0.4 %", "100 %"]


def test_a_job_says_why_it_failed(tmp_path: Path):
    job = Job(["propagate", "--load-config", str(tmp_path / "no.yml"), "--output-dir", str(tmp_path / "out")])
    wait_for(lambda: not job.running, seconds=90)
    assert job.error is not None
    assert "no.yml" in job.error
    assert "error:" not in job.error


def test_a_cancelled_job_is_no_error_and_progress_counts_its_own_files(tmp_path: Path):
    manifest = tmp_path / "propagation.json"
    manifest.write_text(json.dumps({"files": ["old.png"]}))
    job = Job(["demo", "--help"], manifest)
    assert job.progress is None  # that was an earlier job's
    manifest.write_text(json.dumps({"files": ["a.png", "b.png"]}))
    (tmp_path / "a.png").touch()
    assert job.progress == 0.5
    job.cancel()
    wait_for(lambda: not job.running, seconds=60)
    assert job.error is None


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("panel")
    trainer = start(tiny_config(tiny_capture(folder / "room"), folder / "out", steps=60))
    trainer.train()
    trainer.pipeline.eval()
    log = trainer.base_dir / "viewer.log"
    config = ViewerConfig(websocket_port=free_port())
    found = Viewer(config, log, folder, trainer.pipeline, train_lock=threading.Lock())  # pyright: ignore
    found.init_scene(trainer.pipeline.datamanager.train_dataset, "completed")  # pyright: ignore
    yield found
    found.viser_server.stop()


def pipeline_of(viewer: Viewer) -> JacobiNeRFPipeline:
    assert isinstance(viewer.pipeline, JacobiNeRFPipeline)
    return viewer.pipeline


@pytest.fixture
def panel(viewer: Viewer) -> Panel:
    found: Panel = viewer.pipeline.panel  # pyright: ignore
    pipeline_of(viewer).model.loads += 1  # nothing is remembered of other tests' clicks
    found.desk.do(lambda: found.desk.change(lambda _: Annotations()))
    found.desk.do(lambda: found.desk.say(""))
    settle(found)
    return found


def settle(panel: Panel) -> None:
    """Waits until the panel has done all that was asked of it so far."""
    done = threading.Event()
    panel.desk.do(done.set)
    assert done.wait(20)


def render(panel: Panel) -> None:
    """A frame, as a tab's thread renders it."""
    token = SCREEN.set(panel.screen)
    try:
        pipeline = pipeline_of(panel.viewer)
        pipeline.model.get_outputs_for_camera(pipeline.datamanager.eval_dataset.cameras[0:1])
    finally:
        SCREEN.reset(token)
    settle(panel)


def click_on_pixel(panel: Panel, row: int, col: int, away: bool = False) -> None:
    """What viser calls when somebody clicks; `away` looks the other way, where nothing is."""
    camera = pipeline_of(panel.viewer).datamanager.eval_dataset.cameras[0:1]
    rays = camera.generate_rays(camera_indices=0, coords=torch.tensor([[row + 0.5, col + 0.5]]))
    direction = rays.directions[0].tolist()
    event = SimpleNamespace(
        event_type="click",
        ray_origin=(rays.origins[0] * 10 + (1e4 if away else 0)).tolist(),
        ray_direction=direction,
        screen_pos=[(0.5, 0.5)],
    )
    handler = panel.viser_server.scene._scene_pointer_cb
    assert handler is not None, "nobody waits for a click"
    handler(event)  # pyright: ignore
    settle(panel)


def press(panel: Panel, negative: bool = False) -> None:
    panel.desk.do(lambda: panel.clicks.arm("click", negative))
    settle(panel)


def saved(panel: Panel) -> Annotations:
    return read_annotations(panel._store.path)


def test_the_first_click_makes_a_label_and_is_saved(panel: Panel):
    press(panel)
    assert "Click on the thing" in panel.desk._status.content
    click_on_pixel(panel, 9, 12)
    assert [label.name for label in saved(panel).labels] == ["object 1"]
    assert [seed.kind for seed in saved(panel).seeds] == ["space"]
    assert saved(panel).view.propagation.void_below == NEW_VOID
    assert panel.viser_server.scene._scene_pointer_cb is None  # the camera moves again
    render(panel)
    assert "answers in" in panel.desk._status.content
    assert len(panel._marks._drawn) == 1
    assert "object 1" in panel.clicks.label.options


def test_a_click_on_nothing_leaves_nothing(panel: Panel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jacobinerf_ns.labels.seed_cache.SURFACE", 2.0)  # nothing is that solid
    press(panel)
    click_on_pixel(panel, 9, 12)
    render(panel)
    assert "no surface there" in panel.desk._status.content
    assert saved(panel).seeds == ()
    monkeypatch.undo()
    pipeline_of(panel.viewer).model.loads += 1
    press(panel)
    click_on_pixel(panel, 9, 12)
    render(panel)
    assert len(saved(panel).seeds) == 1
    assert "answers in" in panel.desk._status.content


def test_a_label_may_be_deleted_while_its_click_is_looked_at(panel: Panel):
    press(panel)
    click_on_pixel(panel, 9, 12)
    (seed,) = saved(panel).seeds
    render(panel)
    shown = panel._report
    assert shown.snapshot is not None
    assert [mark.seed for mark in shown.snapshot.marks] == [seed]
    panel.clicks._awaited = seed  # its frame is on the way when the label goes
    panel.desk.do(panel.labels.delete)
    panel.desk.do(lambda: panel._looked(shown))
    settle(panel)
    assert "did not work" not in panel.desk._status.content
    assert not panel.clicks.waits
    assert saved(panel).labels == ()


def test_keep_clicking_and_stop(panel: Panel):
    panel.clicks._sticky.value = True
    try:
        press(panel)
        for col in (5, 12, 18):
            click_on_pixel(panel, 9, col)
        assert len(saved(panel).seeds) == 3
        panel.desk.do(panel.clicks.disarm)
        settle(panel)
        assert panel.viser_server.scene._scene_pointer_cb is None
        assert panel.clicks._buttons[0].visible
    finally:
        panel.clicks._sticky.value = False


def test_not_this_needs_something_to_take_away_from(panel: Panel):
    press(panel, negative=True)
    assert "takes away" in panel.desk._status.content
    assert panel.viser_server.scene._scene_pointer_cb is None
    press(panel)
    click_on_pixel(panel, 9, 12)
    press(panel, negative=True)
    click_on_pixel(panel, 2, 2)
    assert [seed.negative for seed in saved(panel).seeds] == [False, True]


def test_undo_redo_clear(panel: Panel):
    for col in (5, 12):
        press(panel)
        click_on_pixel(panel, 9, col)
    for step, count in (
        (panel.clicks.undo, 1),
        (panel.clicks.redo, 2),
        (panel.clicks.clear, 0),
        (panel.clicks.undo, 2),
    ):
        panel.desk.do(step)
        settle(panel)
        assert len(saved(panel).seeds) == count
    panel.desk.do(panel.clicks.clear)
    panel.desk.do(panel.clicks.clear)
    settle(panel)
    assert "no seeds to clear" in panel.desk._status.content


def test_looking_is_nothing_to_undo(panel: Panel):
    press(panel)
    click_on_pixel(panel, 9, 12)
    panel.desk.do(lambda: panel.show.set(strictness=0.4))
    panel.desk.do(panel.clicks.undo)
    settle(panel)
    assert saved(panel).seeds == ()
    assert saved(panel).view.propagation.strictness == 0.4


def test_a_box_is_drawn_by_the_tab_it_is_drawn_in(panel: Panel):
    panel.desk.do(lambda: panel.clicks.arm("rect-select", False))
    settle(panel)
    camera = SimpleNamespace(
        position=np.array([10.0, 20.0, 30.0]), wxyz=np.array([1.0, 0.0, 0.0, 0.0]), fov=np.pi / 2, aspect=1.0
    )
    event = SimpleNamespace(
        event_type="rect-select", client=SimpleNamespace(camera=camera), screen_pos=[(0.25, 0.25), (0.75, 0.75)]
    )
    handler: Any = panel.viser_server.scene._scene_pointer_cb
    handler(event)
    settle(panel)
    (box,) = saved(panel).seeds
    assert isinstance(box, SpaceBox)
    origin = panel.desk.world.points_to_scene(torch.tensor([box.origin], dtype=torch.float64))[0]
    assert origin.tolist() == pytest.approx([1, 2, 3])


def test_labels_are_named_coloured_chosen_and_deleted(panel: Panel):
    panel.desk.do(panel.desk.add_label)
    panel.desk.do(panel.desk.add_label)
    settle(panel)
    assert [label.name for label in saved(panel).labels] == ["object 1", "object 2"]
    panel.labels._name.value = "chair"
    panel.desk.do(panel.labels.rename)
    settle(panel)
    panel.labels._colour.value = (1, 2, 3)
    panel.desk.do(panel.labels.recolour)
    settle(panel)
    chair = changes.label_named(saved(panel), "chair")
    assert chair.colour == (1, 2, 3)
    panel.labels._name.value = "object 1"
    panel.desk.do(panel.labels.rename)
    settle(panel)
    assert "every name once" in panel.desk._status.content
    panel.desk.do(lambda: panel.clicks.choose("object 1"))
    panel.desk.do(panel.labels.delete)
    settle(panel)
    assert [label.name for label in saved(panel).labels] == ["chair"]
    panel.desk.do(panel.labels.delete)
    panel.desk.do(panel.labels.delete)
    settle(panel)
    assert "no label yet" in panel.desk._status.content


def test_edits_are_saved_changed_and_taken_back(panel: Panel):
    panel.desk.do(lambda: panel.edits.edit("Remove"))
    settle(panel)
    assert "no label yet" in panel.desk._status.content
    press(panel)
    click_on_pixel(panel, 9, 12)
    panel.desk.do(lambda: panel.edits.edit("Recolour"))
    settle(panel)
    panel.edits._strength.value = 0.25
    panel.edits._colour.value = (9, 8, 7)
    panel.desk.do(panel.edits.adjust)
    settle(panel)
    (edit,) = saved(panel).edits
    assert (edit.kind, edit.strength, edit.colour) == ("recolour", 0.25, (9, 8, 7))
    panel.desk.do(lambda: panel.edits.edit("None"))
    settle(panel)
    assert saved(panel).edits == ()


def test_another_program_and_a_damaged_file(panel: Panel):
    write_annotations(panel._store.path, changes.add_label(Annotations(), "from outside")[0])
    wait_for(lambda: "from outside" in panel.clicks.label.options)
    panel._store.path.write_text("{")
    wait_for(lambda: "not valid JSON" in panel.desk._status.content.replace("\\", ""))
    press(panel)
    click_on_pixel(panel, 9, 12)
    assert panel._store.path.read_text() == "{"  # what somebody may want to repair is not overwritten
    panel._store.path.unlink()
    press(panel)
    click_on_pixel(panel, 9, 12)
    assert len(saved(panel).seeds) == 1


def test_a_run_that_is_removed_while_it_is_open_loses_no_label(panel: Panel):
    run = panel._store.folder
    elsewhere = run.parent.with_name("elsewhere")
    press(panel)
    click_on_pixel(panel, 9, 12)
    run.parent.rename(elsewhere)
    try:
        wait_for(lambda: "has gone" in panel.desk._status.content)
        assert "kept in memory" in panel.desk._status.content
        press(panel)
        click_on_pixel(panel, 9, 5)
        render(panel)
        # Below what the click met, and for as long as it is so.
        assert "answers in" in panel.desk._status.content
        assert "kept in memory only" in panel.desk._status.content
        assert panel.desk._status.content.count("⚠") == 1
        assert len(panel.desk.annotations.seeds) == 2
        assert not run.parent.exists()
    finally:
        elsewhere.rename(run.parent)
    wait_for(lambda: "saved again" in panel.desk._status.content)
    assert len(saved(panel).seeds) == 2
    panel.desk.do(lambda: panel.desk.say("what is said next"))
    settle(panel)
    assert panel.desk._status.content == "what is said next"


def test_memory_of_frames_is_given_back_while_the_panel_has_nothing_else_to_do(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Any] = []
    monkeypatch.setattr(panel, "_freed", SimpleNamespace(give_back=drawn.append))
    render(panel)
    wait_for(lambda: panel._report in drawn)


def test_what_another_program_writes_is_on_the_screen_whoever_sees_it_first(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
):
    """The panel shows the file whenever it looks; that must not count as having asked for frames."""
    settle(panel)
    asked: list[int] = []
    monkeypatch.setattr(
        panel.viewer, "render_statemachines", SimpleNamespace(items=list, values=lambda: asked.append(1) or [])
    )
    write_annotations(panel._store.path, changes.add_label(Annotations(), "from outside")[0])
    panel.desk.do(panel._refresh)
    settle(panel)
    wait_for(lambda: asked)


def test_what_a_user_has_just_set_is_not_set_back(panel: Panel):
    """viser changes the value before it tells anybody; a frame's report may refresh the panel just then."""
    slider = panel.show._opacity
    slider._impl.value = 0.25  # as viser does, before it calls back
    panel.desk.do(panel._refresh)
    settle(panel)
    assert slider.value == 0.25
    told: Any = SimpleNamespace(client=object())
    for callback in slider._impl.update_cb:
        callback(told)
    settle(panel)
    assert saved(panel).view.opacity == 0.25


def test_smaller_and_larger_go_from_level_to_level_and_end(panel: Panel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LabelSnapshot, "levels", lambda *_: Plateaus((0.9, 0.5, 0.2), natural=1))
    smaller, larger = panel.sizes._smaller, panel.sizes._larger
    assert (smaller.disabled, larger.disabled) == (True, True)
    press(panel)
    click_on_pixel(panel, 9, 12)
    render(panel)
    assert (smaller.disabled, larger.disabled) == (False, False)
    panel.desk.do(lambda: panel.sizes.step(1))
    settle(panel)
    assert panel.desk._status.content == "larger: 3 of 3"
    assert [label.grow for label in saved(panel).labels] == [1]
    assert (smaller.disabled, larger.disabled) == (False, True)
    panel.desk.do(lambda: panel.sizes.step(1))
    settle(panel)
    assert "nothing larger is known" in panel.desk._status.content
    for _ in range(2):
        panel.desk.do(lambda: panel.sizes.step(-1))
    settle(panel)
    assert panel.desk._status.content == "smaller: 1 of 3"
    assert (smaller.disabled, larger.disabled) == (True, False)
    panel.desk.do(panel.clicks.undo)
    settle(panel)
    assert [label.grow for label in saved(panel).labels] == [0]


def test_a_new_label_is_chosen_in_the_list(panel: Panel):
    panel.desk.do(panel.desk.add_label)
    settle(panel)
    assert panel.clicks.label.options == ("object 1", texts.NEW_LABEL)
    panel.desk.do(lambda: panel.clicks.choose(texts.NEW_LABEL))
    settle(panel)
    assert panel.clicks.label.options == ("object 1", "object 2", texts.NEW_LABEL)
    assert panel.clicks.label.value == "object 2"


def test_what_everybody_needs_comes_first_and_the_rest_is_folded_away(panel: Panel):
    parent = panel.clicks.label._impl.parent_container_id
    inside: list[Any] = list(panel.viser_server.gui._container_handle_from_id[parent]._children.values())
    shown = sorted((child for child in inside if hasattr(child, "_impl")), key=lambda child: child._impl.order)
    labels = [child._impl.label for child in shown if child._impl.visible]
    assert labels == ["Label", "Click", "Not this", "Smaller", "Larger", "Name", "Propagate", "Save masks", "Seeds"]


class Page:
    """The camera of a page, as viser sets it."""

    def __init__(self, position: tuple[float, float, float], look_at: tuple[float, float, float]) -> None:
        self.position, self.look_at, self.fov = np.array(position), np.array(look_at), 1.3
        self.up_direction, self.camera = np.array([0.0, 0.0, 1.0]), self

    def atomic(self) -> Any:
        return nullcontext()


def test_a_page_that_is_opened_begins_at_a_photo_and_one_that_was_open_is_left_alone(viewer: Viewer):
    cameras = pipeline_of(viewer).photo_cameras
    view, fresh, old = OpeningView(cameras), Page((-3.0, 3.0, 3.0), (0, 0, 0)), Page((1.0, 2.0, 3.0), (0, 0, 0))
    for page in (fresh, old):
        view._put(page)  # pyright: ignore
    distances = (cameras.camera_to_worlds[:, :, 3].numpy() * 10 - fresh.position).__abs__().max(-1)
    photo = int(distances.argmin())
    assert distances[photo] < 1e-6
    ahead = fresh.look_at - fresh.position
    np.testing.assert_allclose(ahead / np.linalg.norm(ahead), -cameras.camera_to_worlds[photo, :, 2].numpy(), atol=1e-5)
    assert fresh.fov == pytest.approx(2 * math.atan(float(cameras.height[photo] / 2 / cameras.fy[photo])))
    assert old.position.tolist() == [1, 2, 3]


def test_files_need_a_checkpoint_and_a_click(panel: Panel):
    settle(panel)
    assert panel.files._masks.disabled
    assert not panel.files._state.visible
    panel.desk.do(panel.files.save_masks)
    settle(panel)
    assert "Click on a thing first" in panel.desk._status.content
    press(panel)
    click_on_pixel(panel, 9, 12)
    assert not panel.files._masks.disabled
    assert not panel.files._part.disabled


def test_on_a_cpu_the_viewer_starts_with_frames_that_it_can_render(viewer: Viewer):
    assert viewer.control_panel.max_res == CPU_RESOLUTION < 512
