"""A capture and a method small enough for tests: seconds on one core."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from jacobinerf_ns.config import jacobinerf_lite
from jacobinerf_ns.demo.capture import write_capture
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.shaping import ShapingConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainer, JacobiNeRFTrainerConfig

SHAPING_START = 4


def tiny_capture(folder: Path) -> Path:
    """Six views of the demo room, two of them held out."""
    return write_capture(folder, num_views=6, width=24, height=18, num_test=2)


def tiny_config(data: Path, output_dir: Path, steps: int = 8) -> JacobiNeRFTrainerConfig:
    """`jacobinerf-lite`, made tiny, with the oracle as its teacher and shaping from step 4 on."""
    config = deepcopy(jacobinerf_lite.config)
    assert isinstance(config, JacobiNeRFTrainerConfig)
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
        shaping_start_step=SHAPING_START,
        shaping=ShapingConfig(pairs="threshold"),
        # Of a field that has learnt for eight steps the trunk tells pixels apart, and a fresh branch does not yet.
        shaped_layers="rgb",
        entity_units=8,
        entity_levels=2,
        entity_log2_hashmap_size=9,
    )
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    config.pipeline.datamanager.eval_num_rays_per_batch = 64
    config.pipeline.datamanager.extractor = OracleConfig()
    config.pipeline.datamanager.cache_dir = output_dir / "cache"
    config.data = config.pipeline.datamanager.data = data
    config.output_dir, config.timestamp, config.vis = output_dir, "run", "tensorboard"
    config.max_num_iterations = steps
    config.logging.local_writer.enable = False
    config.viewer.quit_on_train_completion = True
    config.machine.device_type = "cpu"
    return config


def start(config: JacobiNeRFTrainerConfig) -> JacobiNeRFTrainer:
    """A trainer that is set up, as `ns-train` sets it up."""
    from nerfstudio.scripts.train import _set_random_seed

    config.set_timestamp()
    config.save_config()
    _set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer
