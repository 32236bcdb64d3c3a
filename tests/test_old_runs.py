"""Runs that an earlier version made: the names in their config.yml are a file format."""

import importlib
import re
from pathlib import Path

import pytest
import yaml
from tiny import tiny_capture

from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

OLD_CONFIG = Path(__file__).parent / "data" / "config_before_the_rooms.yml"
"""As `ns-train jacobinerf-lite … oracle` wrote it before modules were moved into rooms; only its paths were changed."""
NAMES = (
    "dataparsers.jacobinerf_data.JacobiNeRFDataParser",
    "dataparsers.jacobinerf_data.JacobiNeRFDataParserConfig",
    "dataparsers.replica_data.ReplicaDataParser",
    "dataparsers.replica_data.ReplicaDataParserConfig",
    "dataparsers.scannet_labels.ScanNetLabelsParser",
    "dataparsers.scannet_labels.ScanNetLabelsParserConfig",
    "datamanager.FeatureDataManager",
    "datamanager.FeatureDataManagerConfig",
    "features.dino.DinoConfig",
    "features.handcrafted.HandcraftedConfig",
    "features.oracle.OracleConfig",
    "features.precomputed.PrecomputedConfig",
    "model.JacobiNeRFModel",
    "model.JacobiNeRFModelConfig",
    "optimizers.FusedAdam",
    "optimizers.FusedAdamOptimizerConfig",
    "pipeline.JacobiNeRFPipeline",
    "pipeline.JacobiNeRFPipelineConfig",
    "schedulers.DecayScheduler",
    "schedulers.DecaySchedulerConfig",
    "shaping.ShapingConfig",
    "trainer.JacobiNeRFTrainer",
    "trainer.JacobiNeRFTrainerConfig",
)
"""All classes of ours that may stand in a config.yml. A name may be added; none may be moved or renamed."""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_stands_in_config_files_is_where_it_was(name: str):
    module, _, attribute = name.rpartition(".")
    assert isinstance(getattr(importlib.import_module(f"jacobinerf_ns.{module}"), attribute), type)


def test_a_config_of_the_version_before_opens_and_builds(tmp_path: Path):
    text = OLD_CONFIG.read_text()
    written = set(re.findall(r"jacobinerf_ns\.([\w.]+)", text))
    assert written <= set(NAMES)
    assert {"trainer.JacobiNeRFTrainerConfig", "shaping.ShapingConfig", "features.oracle.OracleConfig"} <= written
    config = yaml.load(text, Loader=yaml.Loader)
    assert isinstance(config, JacobiNeRFTrainerConfig)
    data = config.pipeline.datamanager
    data.data = data.dataparser.data = tiny_capture(tmp_path / "room")
    config.pipeline.annotations = tmp_path / "annotations.json"
    pipeline = config.pipeline.setup(device="cpu", test_mode="inference")
    assert pipeline.model.config.entity_units == 64
    assert pipeline.model.config.shaped_layers == "entity"
