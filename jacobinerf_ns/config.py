"""The registered methods: one function, and what each method replaces in its result.

Import-light on purpose: nerfstudio loads every plugin's config for every command, and one that fails breaks them all.
"""

from dataclasses import replace

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from jacobinerf_ns.datamanager import FeatureDataManagerConfig
from jacobinerf_ns.features.choices import ExtractorConfig
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.surfaces import SurfacesConfig
from jacobinerf_ns.model import JacobiNeRFModelConfig
from jacobinerf_ns.optimizers import FusedAdamOptimizerConfig
from jacobinerf_ns.pipeline import JacobiNeRFPipelineConfig
from jacobinerf_ns.schedulers import DecaySchedulerConfig
from jacobinerf_ns.shaping import PAPER_SHAPING, ShapingConfig
from jacobinerf_ns.trainer import JacobiNeRFTrainerConfig

FULL_MODEL = JacobiNeRFModelConfig(
    eval_num_rays_per_chunk=1 << 15,
    average_init_density=0.01,
    # With `last_sample` a plain wall may be thin: what is left of the light has its colour anyway.
    background_color="random",
    camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
    entity_units=64,
    entity_in_colour=False,
    entity_max_res=128,
    shaped_layers="entity",
    shaping_start_step=6000,
    shaping=ShapingConfig(mig_loss_mult=0.05, teacher_temperature=0.12),
)
LITE_MODEL = replace(
    FULL_MODEL,
    eval_num_rays_per_chunk=2048,
    num_levels=8,
    log2_hashmap_size=15,
    max_res=512,
    num_proposal_samples_per_ray=(32, 16),
    num_nerf_samples_per_ray=24,
    camera_optimizer=CameraOptimizerConfig(mode="off"),
    use_appearance_embedding=False,
    # Its own teacher looks at the field's depth: most of the training makes that.
    shaping_start_step=2400,
)
PAPER_MODEL = replace(
    FULL_MODEL,
    background_color="last_sample",
    entity_units=0,
    entity_in_colour=True,
    shaped_layers="rgb",
    shaping_start_step=30000,
    num_shaping_rays=64,
    detach_rendering_weights=False,
    detach_colours=False,
    shaping_gradient_below=1.0,
    shaping=PAPER_SHAPING,
)


def trainer_config(
    name: str,
    model: JacobiNeRFModelConfig,
    steps: int,
    rays: int,
    decay_steps: int,
    lr_final: float,
    teacher: ExtractorConfig | None = None,
) -> JacobiNeRFTrainerConfig:
    """Return a method: nerfacto's optimisers and logging around a model.

    Args:
        name: the method's name on the command line and in config.yml.
        model: what is trained.
        steps: training steps.
        rays: rays per training step.
        decay_steps: steps over which learning rates fall from 1e-2 to `lr_final`.
        lr_final: learning rate at the end of the decay.
        teacher: taken where none is named; none is the data manager's own, DINO.
    """
    group = {
        "optimizer": FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15),
        "scheduler": DecaySchedulerConfig(lr_final=lr_final, max_steps=decay_steps),
    }
    camera_group = {
        "optimizer": FusedAdamOptimizerConfig(lr=1e-3, eps=1e-15),
        "scheduler": DecaySchedulerConfig(lr_final=1e-4, max_steps=5000),
    }
    return JacobiNeRFTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_save=2000,
        steps_per_eval_batch=500,
        mixed_precision=True,
        pipeline=JacobiNeRFPipelineConfig(
            datamanager=FeatureDataManagerConfig(
                train_num_rays_per_batch=rays, eval_num_rays_per_batch=rays, extractor=teacher or DinoConfig()
            ),
            model=model,
        ),
        optimizers={
            "proposal_networks": group,
            "fields": group,
            # Shaping begins when the other rates have fallen.
            "entities": {"optimizer": FusedAdamOptimizerConfig(lr=1e-2, eps=1e-15), "scheduler": None},
            "camera_opt": camera_group,
        },
        viewer=ViewerConfig(num_rays_per_chunk=model.eval_num_rays_per_chunk),
        vis="viewer+tensorboard",
    )


jacobinerf = MethodSpecification(
    config=trainer_config("jacobinerf", FULL_MODEL, steps=30000, rays=4096, decay_steps=200000, lr_final=1e-4),
    description="JacobiNeRF on nerfacto: click once, get the whole entity in every view.",
)
jacobinerf_lite = MethodSpecification(
    config=replace(
        trainer_config(
            "jacobinerf-lite",
            LITE_MODEL,
            steps=3000,
            rays=512,
            decay_steps=3000,
            lr_final=1e-3,
            teacher=SurfacesConfig(),
        ),
        mixed_precision=False,
        steps_per_save=500,
    ),
    description="JacobiNeRF for CPUs and small GPUs: minutes on two cores.",
)
jacobinerf_paper = MethodSpecification(
    config=trainer_config("jacobinerf-paper", PAPER_MODEL, steps=40000, rays=4096, decay_steps=200000, lr_final=1e-4),
    description="JacobiNeRF with the paper's schedule and loss: plain training, then 10,000 shaping steps of 64 rays.",
)
