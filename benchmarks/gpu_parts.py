"""The parts of gpu_day.py: what each measures, at full size or, to see that it works, at toy size."""

import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_cost import MANY, labelled_snapshot, medians
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from PIL import Image
from transformers import ViTConfig, ViTModel
from viewer_latency import Measurement

from jacobinerf_ns.annotations.formats.png import write_index_png
from jacobinerf_ns.annotations.store import ANNOTATIONS_NAME, AnnotationStore
from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.config import jacobinerf
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.demo.contact_sheet import click_things, write_contact_sheet
from jacobinerf_ns.evaluation.shaping_quality import evaluate_one_click
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.cache import extract_all
from jacobinerf_ns.features.dino import DinoConfig, DinoExtractor
from jacobinerf_ns.features.frozen import normalised
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.run.labelled_views import Labels
from jacobinerf_ns.run.opened import Run, open_run
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig
from jacobinerf_ns.training import train

NEVER = 1 << 40
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    capture: tuple[int, int, int]
    """Views, width and height of the room that is trained on."""
    steps: int
    """Steps of a turn: proposal networks learn in every sixth at the latest, so a multiple of six."""
    turns: int
    click_size: tuple[int, int]
    click_rounds: int
    labelled: tuple[int, int]
    """Width and height of the views that one and twenty labels are shown in."""
    propagated: tuple[int, int, int]
    """Views, width and height."""
    propagation_seconds: float
    """After these the views that are left are not rendered, but reckoned."""
    images: tuple[int, int, int]
    """Photos for the transformer: how many, width and height."""
    vit: dict[str, Any]


FULL = Size(
    (48, 320, 240),
    steps=30,
    turns=4,
    click_size=(512, 512),
    click_rounds=30,
    labelled=(960, 720),
    propagated=(100, 1920, 1080),
    propagation_seconds=75.0,
    images=(64, 1440, 1080),
    vit={"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
)
TOY = Size(
    (6, 24, 18),
    steps=1,
    turns=1,
    click_size=(12, 12),
    click_rounds=1,
    labelled=(16, 12),
    propagated=(2, 16, 9),
    propagation_seconds=1.0,
    images=(3, 80, 60),
    vit={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
)


class Day:
    """All parts, and what they share: the captures, the random transformer, the trained run."""

    def __init__(self, folder: Path, device: str, toy: bool, train_seconds: float) -> None:
        self.folder, self.device, self.toy, self.train_seconds = folder, device, toy, train_seconds
        self.size = TOY if toy else FULL
        self.seconds_per_step: float | None = None
        """What a shaped step takes, once that is known: so many fit into training."""
        # The ray tracer works on one CPU core for a minute or two: meanwhile the GPU has other things to do.
        self._renders = not toy and not self.config_file.exists()
        if self._renders:
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            self._rendered = pool.submit(write_capture, *self._room_settings(*self.size.capture))
            pool.shutdown(wait=False)

    def parts(self) -> dict[str, Callable[[], Numbers]]:
        """What is measured, by name, in the order of its worth."""
        grids = ["jit", "torch", *(["tcnn"] if importlib.util.find_spec("tinycudann") else [])]
        steps = {f"steps, {name}": lambda name=name: self.steps(name) for name in grids}
        first, *others = steps.items()
        return {
            first[0]: first[1],
            "dino": self.dino,
            "training": self.training,
            "click": self.click,
            "labels": self.labels,
            "propagation": self.propagation,
            **dict(others),
        }

    @property
    def config_file(self) -> Path:
        """That of the trained run."""
        return self.folder / "runs" / "room" / "jacobinerf" / "day" / "config.yml"

    def steps(self, implementation: str) -> Numbers:
        """Seconds of the trainer's own steps in the middle of training, unshaped and shaped, in turns."""
        config = self._config(
            f"steps-{implementation}", DinoConfig(model=str(self._vit), stride=0 if self.toy else None)
        )
        config.pipeline.model.implementation = implementation  # pyright: ignore[reportAttributeAccessIssue]
        config.data = config.pipeline.datamanager.data = self._room(*((6, 24, 18) if self.toy else (12, 96, 72)))
        trainer = started(config)
        step = config.max_num_iterations // 2
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(1 + self.size.turns):
            for shaped in (False, True):
                elapsed = timed_steps(trainer, step, self.size.steps, shaped)
                step += self.size.steps
                if turn > 0:  # the first ones allocate and compile
                    times[shaped].append(elapsed)
        off, on = (statistics.median(times[shaped]) for shaped in (False, True))
        found = {"off_ms": 1e3 * off, "on_ms": 1e3 * on, "on_over_off": on / off}
        if self.device != "cpu":
            found |= {f"host_reads_{'on' if shaped else 'off'}": host_reads(trainer, step, shaped) for shaped in times}
        return found

    def training(self) -> Numbers:
        """Trains `jacobinerf` at full size for as long as there is, and scores it."""
        config = self._config("", OracleConfig())
        steps = 12 if self.toy else int(self.train_seconds / (self.seconds_per_step or 0.03))
        scale_stages(config, max(12, min(steps, config.max_num_iterations)))
        if self._renders:
            self._rendered.result()
        start = time.perf_counter()
        trainer = train(config, "Training", self._room(*self.size.capture), self.folder / "runs")
        pipeline = trainer.pipeline
        found: Numbers = {"steps": config.max_num_iterations, "seconds": time.perf_counter() - start}
        with quiet_nerfstudio():
            pipeline.eval()
            with pipeline.model.answering_by("trunk"):
                found["unshaped"] = evaluate_one_click(pipeline).as_dict()
            found["shaped"] = evaluate_one_click(pipeline).as_dict()
            run = Run(trainer.config, pipeline, trainer.config.get_base_dir(), config.max_num_iterations - 1)
            write_contact_sheet(self.folder / "contact_sheet.png", run, *click_things(run))
        return found

    def click(self) -> Numbers:
        """Milliseconds from a click's change of the annotations to the colours of the frame, and of other changes."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / ANNOTATIONS_NAME
            pipeline = open_run(self.config_file, file).pipeline
            rows = Measurement(pipeline, AnnotationStore(file), self.size.click_size, self.size.click_rounds).rows()
        return {name: {"median_ms": statistics.median(times), "rays": rays} for name, times, rays in rows}

    def labels(self) -> Numbers:
        """Seconds of a view with one label and with twenty."""
        pipeline, (width, height) = self._run.pipeline, self.size.labelled
        cameras = pipeline.datamanager.eval_dataset.cameras
        views = [resized(cameras, i, width, height).generate_rays(0, keep_shape=True) for i in (0, 0, 1, 0)]

        def shown(count: int, space: Any) -> list[Callable[[], object]]:
            snapshot = labelled_snapshot(pipeline, count, PropagationConfig(space=space))
            return [lambda view=view: label_view(pipeline.model, view, snapshot).rgb.cpu() for view in views]

        kinds = {f"{count} labels, {space}": shown(count, space) for space in ("2d", "3d") for count in (1, MANY)}
        found: Numbers = dict(medians(kinds))
        ratios = {f"{MANY} ÷ 1, {s}": found[f"{MANY} labels, {s}"] / found[f"1 labels, {s}"] for s in ("2d", "3d")}
        return {**found, **ratios}

    def propagation(self) -> Numbers:
        """Seconds of label maps of many large views, to the files."""
        (wanted, width, height), pipeline = self.size.propagated, self._run.pipeline
        snapshot = labelled_snapshot(pipeline, 5, PropagationConfig())
        labels = Labels(pipeline.model, snapshot, lambda split, full: self._run.photos(split))
        cameras, start, done = pipeline.datamanager.train_dataset.cameras, time.perf_counter(), 0
        with tempfile.TemporaryDirectory() as folder:
            for place in range(wanted):
                view = labels.render(resized(cameras, place % len(cameras), width, height))
                write_index_png(Path(folder) / f"{place}.png", view.ids, view.labels)
                done += 1
                if time.perf_counter() - start > self.size.propagation_seconds:
                    break
        each = (time.perf_counter() - start) / done
        return {"size": [width, height], "views": done, "seconds_each": each, f"seconds_of_{wanted}": wanted * each}

    def dino(self) -> Numbers:
        """Images per second of the extractor, from files to files, and of its bare transformer."""
        extractor = DinoConfig(model=str(self._vit), load_size=40 if self.toy else 360).setup(self.device)
        frames = random_photos(self.folder / "photos", *self.size.images)
        with tempfile.TemporaryDirectory() as folder:
            extract_all(extractor, frames[:1], Path(folder))  # the first one allocates
            filled = extract_all(extractor, frames, Path(folder))
        streamed = self._per_second(len(frames), lambda: list(extractor.extract_many(frames)))
        bare = self._bare(extractor, frames)
        files = filled.made / filled.seconds
        return {
            "precision": str(extractor.dtype),
            "bare_images_per_second": bare,
            "extracted_images_per_second": streamed,
            "with_files_images_per_second": files,
            "extracted_over_bare": streamed / bare,
            "with_files_over_bare": files / bare,
        }

    @torch.no_grad()
    def _bare(self, extractor: DinoExtractor, frames: list[Frame]) -> float:
        """The transformer on a batch that lies on the device."""
        image = extractor._read(0, frames[0])
        batch = torch.from_numpy(np.stack([image.pixels] * extractor.batch_size)).to(self.device)
        pixels = normalised(batch, extractor._mean, extractor._std).to(extractor.dtype)
        rounds = max(1, len(frames) // len(batch))

        def run() -> None:
            for _ in range(rounds):
                extractor.model(pixels, interpolate_pos_encoding=True)

        run()
        return self._per_second(rounds * len(batch), run)

    def _per_second(self, count: int, job: Callable[[], object]) -> float:
        synchronise(self.device)
        start = time.perf_counter()
        job()
        synchronise(self.device)
        return count / (time.perf_counter() - start)

    @cached_property
    def _run(self) -> Run:
        return open_run(self.config_file)

    @property
    def _vit(self) -> Path:
        """A folder with a transformer of DINO ViT-S/8's shape, its weights random."""
        folder = self.folder / "vit"
        if not (folder / "model.safetensors").exists():
            torch.manual_seed(0)
            side = 32 if self.toy else 224
            ViTModel(ViTConfig(image_size=side, patch_size=8, **self.size.vit)).save_pretrained(folder)
        return folder

    def _room(self, views: int, width: int, height: int) -> Path:
        return write_capture(*self._room_settings(views, width, height))

    def _room_settings(self, views: int, width: int, height: int) -> tuple[Path, int, int, int, int]:
        return self.folder / f"room-{width}", views, width, height, max(2, views // 6)

    def _config(self, name: str, extractor: Any) -> JacobiNeRFTrainerConfig:
        """`jacobinerf` as registered, or with few rays and small tables; nothing is shown or evaluated meanwhile."""
        config: Any = deepcopy(jacobinerf.config)
        config.machine.device_type = self.device
        config.pipeline.datamanager.extractor = extractor
        config.pipeline.datamanager.cache_dir = self.folder / "features"
        config.output_dir, config.experiment_name, config.timestamp = self.folder / "runs", name or "room", "day"
        config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = NEVER
        config.vis, config.logging.local_writer.enable = "tensorboard", False
        config.viewer.quit_on_train_completion = True
        if self.toy:
            shrink(config)
        return config


def shrink(config: Any) -> None:
    """Make a method so small that a step takes milliseconds on a CPU."""
    proposal = {"hidden_dim": 8, "log2_hashmap_size": 9, "num_levels": 2, "max_res": 32, "use_linear": False}
    config.pipeline.model = replace(
        config.pipeline.model,
        num_levels=3,
        log2_hashmap_size=9,
        max_res=32,
        hidden_dim=16,
        hidden_dim_color=16,
        num_proposal_samples_per_ray=(12, 8),
        num_nerf_samples_per_ray=6,
        proposal_net_args_list=[proposal, proposal],
        entity_units=8,
        entity_levels=2,
        entity_log2_hashmap_size=9,
    )
    data = config.pipeline.datamanager
    data.train_num_rays_per_batch = data.eval_num_rays_per_batch = 64


def scale_stages(config: JacobiNeRFTrainerConfig, steps: int) -> None:
    """Give a method other steps than its own; its stages keep their proportions."""
    model, share = config.pipeline.model, steps / config.max_num_iterations
    model.shaping_start_step = round(share * model.shaping_start_step)
    if model.shaping.decay_steps is not None:
        model.shaping = replace(model.shaping, decay_steps=max(1, round(share * model.shaping.decay_steps)))
    config.max_num_iterations = config.steps_per_save = steps


def started(config: JacobiNeRFTrainerConfig) -> JacobiNeRFTrainer:
    """A trainer that is set up as `ns-train` sets it up."""
    with quiet_nerfstudio():
        config.set_timestamp()
        config.save_config()
        torch.manual_seed(config.machine.seed)
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
    return trainer


def one_step(trainer: JacobiNeRFTrainer, step: int) -> None:
    """What the trainer's loop does in a step: batch, lookup, autocast, scaler, optimisers, schedules, callbacks."""
    trainer.pipeline.train()
    for callback in trainer.callbacks:
        callback.run_callback_at_location(step, location=TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
    trainer.train_iteration(step)
    for callback in trainer.callbacks:
        callback.run_callback_at_location(step, location=TrainingCallbackLocation.AFTER_TRAIN_ITERATION)


def set_shaping(trainer: JacobiNeRFTrainer, shaped: bool) -> None:
    """Switch shaping, and the lookup of features with it."""
    trainer.pipeline.model.config.shaping_start_step = 0 if shaped else NEVER
    trainer.pipeline.datamanager._from_step = 0 if shaped else NEVER


def timed_steps(trainer: JacobiNeRFTrainer, first: int, count: int, shaped: bool) -> float:
    """Mean seconds of some steps."""
    set_shaping(trainer, shaped)
    synchronise(trainer.device)
    start = time.perf_counter()
    for step in range(first, first + count):
        one_step(trainer, step)
    synchronise(trainer.device)
    return (time.perf_counter() - start) / count


def host_reads(trainer: JacobiNeRFTrainer, first: int, shaped: bool, count: int = 9) -> float:
    """How often the host waits for the GPU, in a mean step that is not logged."""
    set_shaping(trainer, shaped)
    every = trainer.config.logging.steps_per_log
    first += -first % every + 1
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for step in range(first, first + count):
                one_step(trainer, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in found) / count


def resized(cameras: Cameras, place: int, width: int, height: int) -> Cameras:
    """One camera of a set, with 90 degrees and another size."""
    pose, focal = cameras.camera_to_worlds[place : place + 1], width / 2.0
    return Cameras(pose, focal, focal, width / 2.0, height / 2.0, width, height).to(cameras.device)


def random_photos(folder: Path, count: int, width: int, height: int) -> list[Frame]:
    """Photos of noise that is smooth enough for JPEG, and their frames."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for place in range(count):
        path = folder / f"{place:03}.jpg"
        if not path.exists():
            rough = np.random.default_rng(place).integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
            Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        found.append(Frame(place, path, (height, width)))
    return found


def synchronise(device: str) -> None:
    """Wait for the GPU, if there is one."""
    if device != "cpu":
        torch.cuda.synchronize()
