"""nerfstudio's own commands as a user types them: on a CPU, offline, from another folder, with nothing set or faked."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import tiny_capture

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
TINY_MODEL = {
    "num-levels": 3,
    "log2-hashmap-size": 9,
    "max-res": 32,
    "hidden-dim": 16,
    "hidden-dim-color": 16,
    "num-proposal-samples-per-ray": "12 8",
    "num-nerf-samples-per-ray": 6,
    "shaping-start-step": 10,
}
TINY = [word for name, value in TINY_MODEL.items() for word in (f"--pipeline.model.{name}", *str(value).split())]
TINY += ["--pipeline.datamanager.train-num-rays-per-batch", "128", "--vis", "tensorboard"]


def environment() -> dict[str, str]:
    """The user's environment, without anything that helps: no torch, Hugging Face or nerfstudio variable."""
    helpers = ("TORCH", "HF_", "NERFSTUDIO", "OMP_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(helpers)}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(*arguments: object, cwd: Path, code: int = 0) -> str:
    """Runs a command and returns what it printed."""
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Path:
    other = folder / "elsewhere"
    other.mkdir()
    return other


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """A trained run; all paths are given relative, from the folder of the capture."""
    tiny_capture(folder / "room")
    train = ["ns-train", "jacobinerf-lite", "--data", "room", "--output-dir", "out", "--timestamp", "run"]
    printed = run(*train, "--max-num-iterations", 20, *TINY, "handcrafted", cwd=folder)
    assert "Training Finished" in printed
    return folder / "out/room/jacobinerf-lite/run/config.yml"


def camera_path(path: Path) -> Path:
    poses = [[1, 0, 0, x, 0, 0, -1, 0.0, 0, 1, 0, 0.1, 0, 0, 0, 1] for x in (0.0, 0.1)]
    content = {
        "camera_type": "perspective",
        "render_height": 18,
        "render_width": 24,
        "seconds": 1,
        "fps": 2,
        "crop": None,
        "camera_path": [{"camera_to_world": [float(v) for v in pose], "fov": 60, "aspect": 1.33} for pose in poses],
    }
    path.write_text(json.dumps(content))
    return path


def test_eval(config: Path, elsewhere: Path):
    printed = run("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=elsewhere)
    results = json.loads((elsewhere / "eval.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert 5 < results["results"]["psnr"] < 60
    assert "lpips" not in results["results"]
    assert printed.count("LPIPS is left out") == 1


def test_render_dataset_names_pictures_as_the_photographs(config: Path, elsewhere: Path):
    names = ["--rendered-output-names", "rgb", "depth"]
    run(
        "ns-render",
        "dataset",
        "--load-config",
        config,
        "--output-path",
        "set",
        "--split",
        "test",
        *names,
        cwd=elsewhere,
    )
    photographs = json.loads((config.parents[3] / "../room/transforms.json").resolve().read_text())["test_filenames"]
    found = {file.stem for file in (elsewhere / "set/test/rgb").iterdir()}
    assert found == {Path(name).stem for name in photographs}


@pytest.mark.skipif(
    shutil.which("ffmpeg", path=environment()["PATH"]) is None,
    reason="no ffmpeg on the PATH (python -m jacobinerf_ns.compat.ffmpeg FOLDER links the bundled one)",
)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("interpolate", ["--interpolation-steps", 2, "--pose-source", "eval", "--frame-rate", 4]),
        ("camera-path", ["--camera-path-filename", "path.json"]),
    ],
)
def test_render_videos(config: Path, elsewhere: Path, kind: str, options: list):
    camera_path(elsewhere / "path.json")
    out = elsewhere / f"{kind}.mp4"
    run("ns-render", kind, "--load-config", config, "--output-path", out, *options, cwd=elsewhere)
    assert out.stat().st_size > 500


def has_libusb() -> bool:
    import ctypes.util

    return ctypes.util.find_library("usb-1.0") is not None


@pytest.mark.skipif(not has_libusb(), reason="Open3D needs libusb-1.0, which is not installed")
def test_export_pointcloud(config: Path, elsewhere: Path):
    options = ["--num-points", 500, "--remove-outliers", "False", "--normal-method", "open3d"]
    run("ns-export", "pointcloud", "--load-config", config, "--output-dir", "cloud", *options, cwd=elsewhere)
    header = (elsewhere / "cloud/point_cloud.ply").read_bytes()[:400].decode(errors="replace")
    count = int(header.split("element vertex ")[1].split()[0])
    assert count >= 500


def wait_for_port(port: int, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the viewer stopped"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the viewer never answered")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_viewer_answers(config: Path, elsewhere: Path):
    port = free_port()
    command = [BIN / "ns-viewer", "--load-config", config, "--viewer.websocket-port", str(port)]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=elsewhere, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
    finally:
        process.kill()
        process.wait()


def test_resume_by_load_dir_from_elsewhere(config: Path, elsewhere: Path):
    command = ["ns-train", "jacobinerf-lite", "--data", config.parents[3] / "../room", "--output-dir", "more"]
    options = ["--load-dir", config.parent / "nerfstudio_models", "--max-num-iterations", 3, "--timestamp", "run"]
    printed = run(*command, *options, *TINY, "handcrafted", cwd=elsewhere)
    assert "after step 19" in printed
    assert (elsewhere / "more/room/jacobinerf-lite/run/nerfstudio_models/step-000000022.ckpt").exists()


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to list processes")
def test_kill_minus_9_then_resume_and_no_child_is_left_after_sigterm(folder: Path, config: Path):
    """Killed at a step nobody chose, with a checkpoint every other step: what is there loads, and training goes on."""
    train = ["ns-train", "jacobinerf-lite", "--data", "room", "--output-dir", "killed", *TINY]
    first = [*train, "--timestamp", "a", "--steps-per-save", "2", "--max-num-iterations", "100000", "handcrafted"]
    models = folder / "killed/room/jacobinerf-lite/a/nerfstudio_models"
    process = subprocess.Popen(
        [str(BIN / first[0]), *first[1:]], cwd=folder, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 180
    while not list(models.glob("*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.3)
    process.kill()
    process.wait()
    assert list(models.iterdir())
    resume = [*train, "--timestamp", "b", "--load-dir", models, "--max-num-iterations", "100000", "handcrafted"]
    process = subprocess.Popen(
        [str(part) for part in [BIN / resume[0], *resume[1:]]],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = next(line for line in process.stdout if "Resuming" in line)
    assert "after step" in line
    time.sleep(2)
    offspring = children(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert not [pid for pid in offspring if Path(f"/proc/{pid}").exists()]


def bad_captures(folder: Path) -> dict[str, tuple[list, str]]:
    """Arguments after `ns-train jacobinerf-lite` by kind of mistake, and what the one line must say."""
    sized = folder / "sized"
    shutil.copytree(folder / "room", sized)
    wrong = next((sized / "semantics").iterdir())
    Image.fromarray(np.ones((5, 7), dtype=np.uint8)).save(wrong)
    (folder / "no_features").mkdir()
    return {
        "no folder": (["--data", "nowhere", "handcrafted"], "no such data folder"),
        "label map of another size": (["--data", "sized", "oracle"], wrong.name),
        "feature folder lacking images": (["--data", "room", "precomputed", "--folder", "no_features"], "no_features"),
        "unknown model": (["--data", "room", "dino", "--model", "nobody/nothing"], "handcrafted"),
    }


KINDS = ["label map of another size", "feature folder lacking images", "unknown model"]


@pytest.fixture(scope="module")
def mistakes(folder: Path, config: Path) -> dict[str, tuple[list, str]]:
    return bad_captures(folder)


def assert_one_line(printed: str, expected: str) -> None:
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in printed


def test_bad_input_ends_the_command_with_one_line_and_exit_code_2(folder: Path, mistakes: dict):
    arguments, expected = mistakes["no folder"]
    printed = run("ns-train", "jacobinerf-lite", "--output-dir", "bad", *TINY, *arguments, cwd=folder, code=2)
    assert_one_line(printed, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_one_line_and_exit_code_2(folder: Path, mistakes: dict, kind: str, monkeypatch, capfd):
    """The command's own entry point, in this process: another one would take ten seconds to begin."""
    from nerfstudio.scripts.train import entrypoint

    arguments, expected = mistakes[kind]
    words = ["ns-train", "jacobinerf-lite", "--output-dir", "bad", *TINY, *arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        entrypoint()
    assert stopped.value.code == 2
    found = capfd.readouterr()
    assert_one_line(found.out + found.err, expected)


def test_a_checkpoint_of_other_layer_sizes_is_one_line(folder: Path, config: Path):
    changed = folder / "changed"
    shutil.copytree(config.parent, changed / "room/jacobinerf-lite/run")
    saved = yaml.load(config.read_text(), Loader=yaml.Loader)
    saved.output_dir, saved.pipeline.model.hidden_dim_color = changed, 24
    other = changed / "room/jacobinerf-lite/run/config.yml"
    other.write_text(yaml.dump(saved))
    printed = run("ns-eval", "--load-config", other, "--output-path", "x.json", cwd=folder, code=2)
    assert "this model's has" in printed
    assert "Traceback" not in printed
