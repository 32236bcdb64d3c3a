"""A demo room that is trained well enough to be clicked in: a minute or so on one core."""

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Bool, Int
from PIL import Image
from tiny import start

from jacobinerf_ns.config import jacobinerf_lite
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.evaluation.one_click import centre_pixel
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.schedulers import DecaySchedulerConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

VIEWS, TEST_VIEWS = 36, 6
WIDTH, HEIGHT = 64, 48
STEPS, SHAPING_START = 800, 300
CLICKED = ("door", "chair green", "sofa", "table wooden", "lamp white")
"""Objects that one click gets well: IoU 0.89 to 0.96 in the clicked view, at the default threshold."""


def room_config(data: Path, output_dir: Path) -> JacobiNeRFTrainerConfig:
    """`jacobinerf-lite`, smaller, with a teacher that tells every object apart (the oracle, without noise).

    Shaped hard: there are few steps for it, and nobody looks at the colours.
    """
    config = deepcopy(jacobinerf_lite.config)
    assert isinstance(config, JacobiNeRFTrainerConfig)
    model = config.pipeline.model
    shaping = replace(model.shaping, mig_loss_mult=0.036, decay_steps=STEPS - SHAPING_START)
    config.pipeline.model = replace(
        model,
        num_nerf_samples_per_ray=16,
        shaping_start_step=SHAPING_START,
        shaping=shaping,
        eval_num_rays_per_chunk=4096,
    )
    config.viewer.num_rays_per_chunk = 4096
    datamanager = config.pipeline.datamanager
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 192
    datamanager.extractor = OracleConfig(noise=0.0, patch_size=2, per_instance=True)
    datamanager.cache_dir = output_dir / "cache"
    config.data = datamanager.data = data
    config.output_dir, config.timestamp, config.vis = output_dir, "run", "tensorboard"
    config.max_num_iterations = config.steps_per_save = STEPS
    for group in ("fields", "proposal_networks"):
        config.optimizers[group]["scheduler"] = DecaySchedulerConfig(lr_final=1e-3, max_steps=STEPS)
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10**6
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    config.machine.device_type = "cpu"
    return config


@dataclass(frozen=True)
class ObjectView:
    """An object of the room, and the training view that shows most of it."""

    name: str
    instance: int
    view: int
    """Place among the training images."""
    pixel: tuple[int, int]
    """(row, col) where a person would click: farthest from the outline."""
    mask: Bool[np.ndarray, "height width"]
    """The truth in that view."""


@dataclass(frozen=True)
class Room:
    """A capture and a trained run of it."""

    capture: Path
    config: Path
    """config.yml of the run."""

    def copy(self, folder: Path) -> Path:
        """config.yml of a copy of the run, for tests that change its annotations; the capture is shared."""
        saved = yaml.load(self.config.read_text(), Loader=yaml.Loader)
        saved.output_dir = folder
        run = saved.get_base_dir()
        shutil.copytree(self.config.parent, run)
        saved.pipeline.annotations = run / "annotations.json"
        (run / "config.yml").write_text(yaml.dump(saved))
        return run / "config.yml"

    def copy_that_knows_words(self, folder: Path) -> Path:
        """The same, with a teacher that knows the names of the instances: noisy vectors of patches, and of texts."""
        config, random = self.copy(folder), np.random.default_rng(0)
        names, meta = self.names(), json.loads((self.capture / "transforms.json").read_text())
        ids = sorted(names)
        table = random.normal(size=(max(ids) + 1, 64)).astype(np.float32) / 8
        features, texts = folder / "features", folder / "words.npy"
        features.mkdir()
        for index, name in enumerate(meta["train_filenames"]):
            patches = table[self.truth(index)].reshape(HEIGHT // 4, 4, WIDTH // 4, 4, -1).mean((1, 3))
            noise = random.normal(size=patches.shape, scale=0.05).astype(np.float32)
            np.save(features / f"{Path(name).stem}.npy", patches + noise)
        absent = random.normal(size=(20, 64)).astype(np.float32)
        np.save(texts, np.concatenate([table[ids], absent]))
        words = [*(names[i] for i in ids), *(f"absent {i}" for i in range(len(absent)))]
        texts.with_suffix(".txt").write_text("\n".join(words) + "\n")
        saved = yaml.load(config.read_text(), Loader=yaml.Loader)
        saved.pipeline.datamanager.extractor = PrecomputedConfig(folder=features, texts=texts)
        config.write_text(yaml.dump(saved))
        return config

    def truth(self, index: int, split: str = "train", folder: str = "instances") -> Int[np.ndarray, "height width"]:
        """Ids of a photograph, by its place in its split; `instances` or `semantics`."""
        meta = json.loads((self.capture / "transforms.json").read_text())
        name = meta[f"{split}_filenames"][index]
        return np.array(Image.open(self.capture / folder / Path(name).name)).astype(int)

    def names(self) -> dict[int, str]:
        """Names of the instances."""
        meta = json.loads((self.capture / "classes.json").read_text())
        return {entry["id"]: entry["name"] for entry in meta["instances"]}

    def best_view(self, name: str) -> ObjectView:
        """The view in which most of an object is seen."""
        instance = next(key for key, value in self.names().items() if value == name)
        count = len(json.loads((self.capture / "transforms.json").read_text())["train_filenames"])
        view = max(range(count), key=lambda index: (self.truth(index) == instance).sum())
        mask = self.truth(view) == instance
        return ObjectView(name, instance, view, centre_pixel(torch.from_numpy(mask)), mask)


def trained_room(folder: Path) -> Room:
    """Makes the room in a folder and trains on it: a minute on one core. For a fixture of a module or session."""
    capture = write_capture(folder / "room", num_views=VIEWS, width=WIDTH, height=HEIGHT, num_test=TEST_VIEWS)
    trainer = start(room_config(capture, folder / "out"))
    trainer.train()
    return Room(capture, trainer.config.get_base_dir() / "config.yml")
