"""Commands in the background of the viewer, beside a GPU that others need."""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jacobinerf_ns.annotations.schema import Annotations, Click, Label
from jacobinerf_ns.panel import job
from jacobinerf_ns.panel.file_section import FileSection

SAYS_ITS_DEVICES = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1]).write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))
"""


class Gpu:
    """Memory of a GPU as torch tells of it: some of it is held by nobody in particular."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, cached: int = 0) -> None:
        self.free, self.cached = free, cached
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (self.free, 80_000_000_000))
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)

    def _empty(self) -> None:
        self.free, self.cached = self.free + self.cached, 0


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a command notes which GPUs it sees."""
    (tmp_path / "says_its_devices.py").write_text(SAYS_ITS_DEVICES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(job, "COMMAND", "says_its_devices")
    return tmp_path / "devices.json"


def seen(started: job.Job, file: Path) -> str:
    """What the command saw, once it has ended."""
    while started.running:
        time.sleep(0.02)
    assert started.error is None
    return json.loads(file.read_text())


def test_a_command_stays_off_a_full_gpu(devices: Path, monkeypatch: pytest.MonkeyPatch):
    Gpu(monkeypatch, free=1_000_000_000, cached=2_000_000_000)
    started = job.Job([str(devices)])
    assert started.on_cpu
    assert seen(started, devices) == ""


def test_memory_that_nobody_uses_is_given_back_first(devices: Path, monkeypatch: pytest.MonkeyPatch):
    gpu = Gpu(monkeypatch, free=1_000_000_000, cached=3_000_000_000)
    started = job.Job([str(devices)])
    assert (started.on_cpu, gpu.cached) == (False, 0)
    assert seen(started, devices) == "0"
    gpu.cached = 1
    assert seen(job.Job([str(devices)]), devices) == "0"
    assert gpu.cached == 1  # where there is room enough, training keeps what it holds


def test_without_a_gpu_nothing_is_asked(devices: Path):
    started = job.Job([str(devices)])
    assert not started.on_cpu
    assert seen(started, devices) == "0"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("os.kill(os.getpid(), 11)", "ended by signal SIGSEGV;"),
        ("os.kill(os.getpid(), 9)", "ended by signal SIGKILL, as the system does where memory runs out;"),
        ("print('error: no label'); sys.exit(2)", "no label"),
        ("print('half'); raise KeyError('it')", "KeyError: 'it'"),
        ("sys.exit(3)", "exit code 3"),
    ],
)
def test_the_panel_says_how_a_command_ended(devices: Path, ends: str, said: str):
    program = devices.with_name("says_its_devices.py")
    program.write_text(f"import os, sys\n{ends}\n")
    started = job.Job([])
    while started.running:
        time.sleep(0.02)
    assert started.error is not None
    assert said in started.error


def test_a_command_that_prints_no_text_does_not_wait_for_its_reader(devices: Path):
    program = devices.with_name("says_its_devices.py")
    program.write_text(
        "import os, sys\nos.write(1, b'\\xff\\xfe broken\\n')\n"
        "for _ in range(4000):\n    print('x' * 99)\nprint('error: full'); sys.exit(2)\n"
    )
    started, end = job.Job([]), time.monotonic() + 20
    while started.running and time.monotonic() < end:
        time.sleep(0.02)
    assert started.error == "full"


@pytest.mark.parametrize("full", [False, True])
def test_the_panel_says_that_it_works_on_the_cpu(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Started:
        running, progress, on_cpu = True, None, full

        def __init__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr("jacobinerf_ns.panel.file_section.Job", Started)
    (tmp_path / "nerfstudio_models").mkdir()
    (tmp_path / "nerfstudio_models" / "step-000000001.ckpt").touch()
    click = Click(label=1, image="a.png", width=8, height=8, pixel=(1, 1))
    noted = Annotations(labels=(Label(id=1, name="chair", colour=(1, 2, 3)),), seeds=(click,))
    said: list[str] = []
    desk: Any = SimpleNamespace(annotations=noted, say=said.append, has_seeds=lambda _: True)
    handle = SimpleNamespace(on_click=lambda _: None, content="")
    gui = SimpleNamespace(**dict.fromkeys(("add_button", "add_progress_bar", "add_markdown"), lambda *_, **__: handle))
    server: Any = SimpleNamespace(gui=gui)
    FileSection(desk, server, tmp_path, nullcontext()).save_masks()  # pyright: ignore[reportArgumentType]
    assert "at work in the background" in said[0]
    assert ("On the CPU, which takes longer: too little of the GPU is free." in said[0]) == full


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"5", b"{}", b'{"files": 5}', b'{"files": [5]}', b'{"files": null}', b"[" * 100_000, b"\xff"],
)
def test_progress_by_a_strangers_manifest_is_not_known(tmp_path: Path, content: bytes):
    found = job.Job.__new__(job.Job)
    found.manifest, found._earlier = tmp_path / "propagation.json", None
    assert found.progress is None
    found.manifest.write_bytes(content)
    assert found.progress is None
    (tmp_path / "a.png").write_bytes(b"")
    found.manifest.write_text('{"files": ["a.png", "b.png"]}')
    assert found.progress == 0.5
