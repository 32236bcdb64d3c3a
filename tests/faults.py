"""kill -9 at random moments: nothing that was finished is lost, nothing is half there, and the same command goes on.

`make faults` kills each of five jobs 20 times; `python tests/faults.py 3 propagation` kills one of them 3 times. A job
runs in a fork, so that what is killed is work and not imports. In the end it has to come to what it comes to unkilled.
Prints a line a job, and ends with 1 where one failed.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tyro
from PIL import Image
from plyfile import PlyData
from tiny import start, tiny_capture, tiny_config

from jacobinerf_ns.annotations.schema import Annotations, Click, Label
from jacobinerf_ns.annotations.store import AnnotationStore, read_annotations, write_annotations
from jacobinerf_ns.cli.features import Features
from jacobinerf_ns.compat.checkpoints import read_checkpoint
from jacobinerf_ns.features.cache import read_grid
from jacobinerf_ns.files.digests import digest_of_each, tensor_bytes
from jacobinerf_ns.run.opened import open_run
from jacobinerf_ns.tasks.masks import propagate
from jacobinerf_ns.tasks.parts.export import export_parts
from jacobinerf_ns.tasks.settings import ExportSettings, PropagateSettings

CHAIR = Label(id=1, name="chair", colour=(1, 2, 3))


@dataclass
class Job:
    """Work that is killed, and what must hold afterwards."""

    work: Callable[[Path], object]
    check: Callable[[Path], object]
    """Raises where something is half there or lost."""
    result: Callable[[Path], object]
    """What the work came to: the same, however often it was killed."""


def main(times: int, names: list[str]) -> int:
    """Kill the jobs, and return the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        jobs = _jobs(place)
        for name in names or list(jobs):
            killed, problems, seconds = _kill(jobs[name], place / name, times)
            print(f"{name}: {killed} of {times} killed within {seconds:.1f} s of work, {len(problems)} failures")
            for problem in problems:
                print(f"  {problem}")
            failed += len(problems)
    return 1 if failed else 0


def _kill(job: Job, folder: Path, times: int) -> tuple[int, list[str], float]:
    folder.mkdir()
    begin = time.perf_counter()
    assert _forked(job.work, folder, None) == 0, "the job fails by itself"
    seconds = time.perf_counter() - begin
    job.check(folder)
    expected = job.result(folder)
    begun = killed = 0
    problems: list[str] = []
    while killed < times:
        assert begun < 20 * times, "the job is done before it can be killed"
        ended = _forked(job.work, folder, random.uniform(0, seconds)) if begun else 0
        if ended not in (0, -signal.SIGKILL):
            problems.append(f"after kill {killed}: the job ended with {ended}")
        killed += ended == -signal.SIGKILL
        try:
            job.check(folder)
        except Exception as error:  # What is wrong is what is asked here, whatever it is.
            problems.append(f"after kill {killed}: {type(error).__name__}: {error}")
        if ended == 0 or begun % 5 == 0:  # Else it goes on where the last kill left it.
            shutil.rmtree(folder)
            folder.mkdir()
        begun += 1
    if _forked(job.work, folder, None) != 0:
        problems.append("the same job does not go on")
    elif job.result(folder) != expected:
        problems.append("killed and begun again it does not come to what it comes to at once")
    return killed, problems, seconds


def _forked(work: Callable[[Path], object], folder: Path, seconds: float | None) -> int:
    """Do the work in a fork, and return its exit code, or less than 0: the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            work(folder)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _jobs(place: Path) -> dict[str, Job]:
    capture = tiny_capture(place / "room")
    names = [Path(name).name for name in json.loads((capture / "transforms.json").read_text())["train_filenames"]]
    settings = tiny_config(capture, place / "out")
    config = settings.get_base_dir() / "config.yml"
    # A fork has none of its parent's threads, so the parent must not have begun any: not even this run is its own.
    assert _forked(lambda _: start(settings).train(), place, None) == 0, "the run that is worked with cannot be trained"
    clicks = tuple(Click(label=1, image=name, width=24, height=18, pixel=(12, 9)) for name in names)
    write_annotations(config.with_name("annotations.json"), Annotations(labels=(CHAIR,), seeds=clicks))

    def extract(folder: Path) -> None:
        arguments = ["--data", str(capture), "--cache-dir", str(folder / "cache"), "handcrafted", "--cell", "1"]
        tyro.cli(Features, args=arguments).main()

    def train(folder: Path) -> None:
        again = tiny_config(capture, folder, steps=40)
        again.steps_per_save, again.save_only_latest_checkpoint = 4, False
        models = again.get_base_dir() / "nerfstudio_models"
        if any(models.glob("*.ckpt")):
            again.load_dir = models
        start(again).train()

    def click(folder: Path) -> None:
        store = AnnotationStore(folder / "annotations.json")
        with (folder / "acknowledged").open("a") as said:
            for number in range(200):
                seed = Click(label=1, image=f"{number}.png", width=24, height=18, pixel=(number % 24, number % 18))
                store.change(lambda now, seed=seed: Annotations(labels=(CHAIR,), seeds=(*now.seeds, seed)))
                said.write("x")
                said.flush()

    def clicks_of(folder: Path) -> list[str | None]:
        return [getattr(seed, "image", None) for seed in read_annotations(folder / "annotations.json").seeds]

    def none_lost(folder: Path) -> None:
        said = folder / "acknowledged"
        count = said.stat().st_size if said.exists() else 0
        kept = len(clicks_of(folder))
        assert kept >= count, f"{count} clicks were acknowledged, {kept} are in the file"

    def whole_pictures(folder: Path) -> None:
        for path in folder.rglob("[!.]*.png"):
            with Image.open(path) as picture:
                picture.load()

    def contents(folder: Path, pattern: str) -> dict[str, str]:
        files = sorted(folder.rglob(f"[!.]*{pattern}"))
        assert files
        return {path.relative_to(folder).as_posix(): digest_of_each([path.read_bytes()]) for path in files}

    def weights(folder: Path) -> tuple[int, str]:
        loaded = read_checkpoint(max(folder.rglob("step-*.ckpt")))
        return loaded["step"], digest_of_each(map(tensor_bytes, loaded["pipeline"].values()))

    return {
        "extraction": Job(
            extract,
            lambda folder: [read_grid(path) for path in folder.rglob("[!.]*.safetensors")],
            lambda folder: contents(folder, ".safetensors"),
        ),
        "training": Job(train, lambda folder: [read_checkpoint(path) for path in folder.rglob("step-*.ckpt")], weights),
        "saving": Job(click, none_lost, lambda folder: len(set(clicks_of(folder)))),
        "propagation": Job(
            lambda folder: propagate(config, folder / "masks", PropagateSettings(overlays=True)),
            whole_pictures,
            lambda folder: contents(folder, ".png"),
        ),
        "export": Job(
            lambda folder: export_parts(
                open_run(config), ["chair"], folder / "parts", ExportSettings(num_points=2000, overwrite=True)
            ),
            lambda folder: [PlyData.read(str(path)) for path in folder.rglob("[!.]*.ply")],
            lambda folder: contents(folder, ".ply"),
        ),
    }


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2:]))
