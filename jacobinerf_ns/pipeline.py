"""Joins datamanager and model, and loads checkpoints without tolerance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from jacobinerf_ns import checkpoints
from jacobinerf_ns.datamanager import FeatureDataManager, FeatureDataManagerConfig
from jacobinerf_ns.errors import one_line_exit
from jacobinerf_ns.model import JacobiNeRFModel, JacobiNeRFModelConfig

CPU_VIEWER_RESOLUTION = 64
"""Longer side of a viewer frame on a CPU, in pixels. A frame holds the training lock: at nerfstudio's 512, training
would stand still for minutes after every move of the camera."""


@dataclass
class JacobiNeRFPipelineConfig(VanillaPipelineConfig):
    """A capture with teacher features, and a model that is shaped by them."""

    _target: type = field(default_factory=lambda: JacobiNeRFPipeline)
    """Class to build."""
    datamanager: FeatureDataManagerConfig = field(default_factory=FeatureDataManagerConfig)
    """Images, and the teacher that looks at them."""
    model: JacobiNeRFModelConfig = field(default_factory=JacobiNeRFModelConfig)
    """The radiance field and its shaping."""

    def setup(self, **kwargs: Any) -> "JacobiNeRFPipeline":
        """Builds the pipeline; every `ns-*` command comes through here, so bad input ends here in one line."""
        with one_line_exit():
            return super().setup(**kwargs)


class FrameLimit(ViewerControl):
    """Starts the viewer with frames that a CPU can render; its `Max res` slider raises it again."""

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        viewer.control_panel._max_res.value = CPU_VIEWER_RESOLUTION


class JacobiNeRFPipeline(VanillaPipeline):
    """`VanillaPipeline` with a teacher while training, and with checkpoints that must fit."""

    config: JacobiNeRFPipelineConfig
    datamanager: FeatureDataManager
    model: JacobiNeRFModel

    def __init__(
        self,
        config: JacobiNeRFPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        trains = test_mode == "val"
        if trains and self.model.config.shaping.active:
            self.datamanager.prepare_features(from_step=self.model.config.shaping_start_step)
        if self.device.type == "cpu":
            self.frame_limit = FrameLimit()

    def load_pipeline(self, loaded_state: Mapping[str, Tensor], step: int) -> None:
        """Loads the model of a checkpoint, ours or plain nerfacto's; anything missing or different is an error."""
        with one_line_exit():
            expected = self.model.state_dict()
            state = checkpoints.model_state(loaded_state)
            if checkpoints.is_nerfacto(state):
                state = checkpoints.from_nerfacto(state, expected)
            checkpoints.check_fits(state, expected)
            self.model.update_to_step(step)
            self.model.load_state_dict(state, strict=True)
