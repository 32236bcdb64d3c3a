"""Nerfacto, shaped: photometric losses as they are, plus the MIG loss and norm regulariser on rendered Jacobians."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import renderers
from nerfstudio.models import nerfacto
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor
from torch.nn import Parameter

from jacobinerf_ns import shaping
from jacobinerf_ns.compat.depth import SurfaceDepthRenderer, ViewDepthRenderer
from jacobinerf_ns.compat.kept_memory import keep_freed_memory
from jacobinerf_ns.compat.nerfacto import (
    built_of,
    density_at,
    implementation_named,
    proposal_loss_left_out,
    use_products,
    write_over_inputs,
)
from jacobinerf_ns.core import jacobian
from jacobinerf_ns.core.gathering import gather_rows
from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.field import BranchShape, FieldTrace, JacobiNeRFField, ShapedLayers, Units
from jacobinerf_ns.hash_grid import encoding as encodings
from jacobinerf_ns.hash_grid.implementations import Implementation, chosen_implementation
from jacobinerf_ns.labels.edits import edited_colour
from jacobinerf_ns.labels.memory import ChunkSize
from jacobinerf_ns.labels.outputs import nothing_to_show, pictures
from jacobinerf_ns.labels.responses import answers, relevancies
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.tracer import in_eval_mode
from jacobinerf_ns.labels.traces import Piece, Traced
from jacobinerf_ns.labels.views import render_view
from jacobinerf_ns.shaping import ShapingConfig

EMPTY_BATCHES = 8
"""Batches without a selected ray after which an export is refused; nerfstudio's point sampler would look for ever."""
NOT_YET = -1
CPU_SHAPING_RAYS, GPU_SHAPING_RAYS = 320, 1024
"""Anchors where `num_shaping_rays` is left to us, without a GPU and with one: pairs stay below a tenth of a step."""
GRID_BYTES = 360
"""Memory of looking up a sample in one level of a hash grid, in plain torch. A ray took, as resident memory on the CPU,
410 to 461 KB in `jacobinerf` and `jacobinerf-paper`, 127 to 152 KB in `jacobinerf-lite`."""
UNIT_COPIES, UNITS_BESIDE = 5, 400
"""Numbers that a sample of the field takes: for each unit that the RGB layer reads, and besides."""
FLOAT_BYTES = 4


@dataclass
class JacobiNeRFModelConfig(NerfactoModelConfig):
    """Nerfacto's options, and when, where and how Jacobians are shaped."""

    _target: type = field(default_factory=lambda: JacobiNeRFModel)
    implementation: Implementation = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Code of hash grids and networks: `tcnn`, tiny-cuda-nn (where it is missing: `jit`); `jit`, torch with hash grids
    compiled on this machine, for CPU and GPU; `torch`, nerfstudio's slow torch code, whose checkpoints `jit` shares;
    `auto`, tiny-cuda-nn on a GPU where it is installed, else `jit`."""
    shaping_start_step: int = 15000
    """First training step with shaping; before it training is plain nerfacto (paper: shaping starts after 200,000 plain
    steps and lasts 10,000)."""
    num_shaping_rays: int | None = None
    """Rays of the batch that are anchors (all pairs are compared); 0 is the whole batch. Default: at most 1024
    on a GPU, 320 on a CPU (paper: 64). Of each process, where several train together."""
    shaped_layers: ShapedLayers = "rgb"
    """Weights whose Jacobian is shaped and answers clicks: the RGB layer's (paper: `rgb`), those of them that read the
    entity branch (`entity`), or those of the last two layers (`rgb+trunk`)."""
    num_entity_samples: int = 6
    """Samples of an anchor's ray, the heaviest, at which an entity branch that colour does not read is asked while it
    is shaped; whatever is rendered asks all of them."""
    detach_rendering_weights: bool = True
    """Keep shaping from moving geometry: rendering weights enter Jacobians as constants (paper: they do not)."""
    detach_colours: bool = True
    """Keep shaping from fading colours: they enter the slopes p(1 − p) as constants (paper: they do not)."""
    shaping_gradient_below: float = 0.1
    """Share (0..1) of the shaping gradient that goes below the colour trunk, to geometry features and hash table. Their
    optimiser scales steps by all gradients it sees, so a full share slows the learning of colour (paper: 1)."""
    entity_units: int = 0
    """Units of the entity branch beside the colour trunk, where shaping has room of its own; 0: none (paper)."""
    entity_in_colour: bool = True
    """Whether colour reads the entity branch too, as in runs of before. Without, colour has a branch of its own, from
    which the entity branch parts when shaping begins: `entity` is then shaped at no cost in colour."""
    entity_levels: int = 6
    """Levels of the entity branch's hash grid."""
    entity_base_res: int = 16
    """Cells along each axis of that grid's coarsest level; the contracted scene is 4 scene units wide."""
    entity_max_res: int = 64
    """Cells along each axis of its finest level. Finer: thinner things, and more of the teacher's noise."""
    entity_log2_hashmap_size: int = 15
    """Entries of each of its levels, as a power of two."""
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    """Pairs, temperature and weights of the shaping losses."""


def _know_whether_parted(model: "JacobiNeRFModel", _: Any) -> None:
    model.field.parted = int(model.first_shaping_step) != NOT_YET


class JacobiNeRFModel(NerfactoModel):
    """`NerfactoModel` whose colour Jacobians are shaped from `shaping_start_step` on."""

    config: JacobiNeRFModelConfig
    field: JacobiNeRFField
    pair_threshold: Float[Tensor, ""]
    """The paper's adaptive threshold: a buffer, so that it survives a resume."""
    first_shaping_step: Int[Tensor, ""]
    """When shaping began: decay counts from there, also where an old field is shaped long after the set start."""

    def populate_modules(self) -> None:
        """Nerfacto's modules, with our field in the place of its field, depth that keeps to surfaces, LPIPS put off
        until it is needed, and hash grids of the implementation that is asked for.
        """
        device = torch.device(self.kwargs.get("device", "cpu"))
        if device.type == "cpu":
            keep_freed_memory()
        chosen = chosen_implementation(self.config.implementation, device)
        with (
            implementation_named(self.config, "tcnn" if chosen == "tcnn" else "torch"),
            built_of(partial(JacobiNeRFField, branch=self._branch_shape())),
        ):
            super().populate_modules()
        assert isinstance(self.field, JacobiNeRFField), "nerfacto no longer builds its field by this name"
        self.renderer_depth, self.renderer_expected_depth = SurfaceDepthRenderer(), ViewDepthRenderer("expected")
        self.density_fns = [partial(density_at, function.__self__) for function in self.density_fns]
        write_over_inputs(self)
        use_products(self)
        self._check_shaped_layers()
        if chosen == "jit":
            self._compile_hash_grids()
        self.field.mlp_head.gradient_below = self.config.shaping_gradient_below
        self.field.mlp_head.recorded_units = self._shaped_units
        self.register_buffer("pair_threshold", torch.tensor(shaping.THRESHOLD_START))
        self.register_buffer("first_shaping_step", torch.tensor(NOT_YET))
        self.register_load_state_dict_post_hook(_know_whether_parted)
        self.label_source: Callable[[], LabelSnapshot | None] | None = None
        self.loads = 0
        self.log_every = 1
        self._chunk_size = ChunkSize()
        self._empty_batches = 0
        self._origin: int | None = None
        self._steps_of_shaping = 0

    def _check_shaped_layers(self) -> None:
        """Refuse layers that are not there, or hidden."""
        layers = self.config.shaped_layers
        if layers == "entity" and not self.config.entity_units:
            raise UserError(
                "shaped-layers entity needs an entity branch, and entity-units is 0: "
                "add --pipeline.model.entity-units 64, or --pipeline.model.shaped-layers rgb"
            )
        if layers == "entity" and self.config.num_entity_samples < 1:
            raise UserError(
                f"num-entity-samples is {self.config.num_entity_samples}, and an entity branch that is asked nowhere "
                "learns nothing: expected at least 1 (default 6)"
            )
        if layers == "rgb+trunk" and self.field.mlp_head.trunk.tcnn_encoding is not None:
            raise UserError(
                "shaped-layers rgb+trunk needs the trunk's inner activations, which tiny-cuda-nn hides: "
                "use --pipeline.model.implementation jit, or --pipeline.model.shaped-layers rgb"
            )

    def _compile_hash_grids(self) -> None:
        """Put our kernels under all hash grids. Gradients by positions serve cameras and normals alone."""
        encodings.use_jit(self)
        moves = self.config.predict_normals or self.config.camera_optimizer.mode != "off"
        for encoding in encodings.encodings_of(self):
            encoding.position_gradients = moves
        encodings.prepare(self, self.kwargs.get("device", "cpu"))

    def _branch_shape(self) -> BranchShape:
        config = self.config
        return BranchShape(
            config.entity_units,
            config.shaped_layers == "entity" and not config.entity_in_colour,
            config.entity_levels,
            config.entity_base_res,
            config.entity_max_res,
            config.entity_log2_hashmap_size,
        )

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Nerfacto's callbacks, and one that tells the model its step (nerfacto's own only does while it anneals)."""

        def set_step(step: int) -> None:
            self.step = step
            if self.shapes_at(step):
                self._steps_of_shaping = step - self._shaping_origin(step)

        before = [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION]
        own = TrainingCallback(where_to_run=before, update_every_num_iters=1, func=set_step)
        return [own, *super().get_training_callbacks(training_callback_attributes)]

    def _shaping_origin(self, step: int) -> int:
        """Return the first shaping step, which is this one if there was none; the buffer, on the GPU, is asked once."""
        if self._origin is None:
            if int(self.first_shaping_step) == NOT_YET:
                self.first_shaping_step.fill_(step)
                self.field.part()
            self._origin = int(self.first_shaping_step)
        return self._origin

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Nerfacto's groups; an entity branch apart is one of its own, since it begins when the others come to rest."""
        groups = super().get_param_groups()
        if self.field.colour_branch is not None and self.field.entity_branch is not None:
            entities = list(self.field.entity_branch.parameters())
            own = {id(parameter) for parameter in entities}
            groups["fields"] = [parameter for parameter in groups["fields"] if id(parameter) not in own]
            groups["entities"] = entities
        return groups

    def shapes_at(self, step: int) -> bool:
        """Whether the shaping losses are on at a training step."""
        return self.config.shaping.active and step >= self.config.shaping_start_step

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Nerfacto's outputs; while shaping also `jacobians` [anchors dims] and `anchors`, their places in it.

        Outside of training also everything that shows labels (`label_rendering.pictures`) and `edited`.
        """
        if not self.training:
            return self._label_outputs(ray_bundle)
        if not self.shapes_at(self.step):
            return super().get_outputs(ray_bundle)
        with self.field.recording() as traces, self.answering_by("trunk" if self.field.apart else self._shaped_units):
            outputs = super().get_outputs(ray_bundle)
        anchors = shaping.anchor_rays(len(ray_bundle), self.num_anchors, self.device)
        outputs["anchors"] = anchors
        outputs["jacobians"] = self._shaped_jacobians(traces[0], outputs["weights_list"][-1], anchors)
        return outputs

    def _shaped_jacobians(
        self, trace: FieldTrace, weights: Float[Tensor, "rays samples 1"], anchors: Int[Tensor, "anchors"] | slice
    ) -> Float[Tensor, "anchors dims"]:
        """Jacobians as the losses see them. An entity branch apart is asked where the light is, and nowhere else."""
        weights = weights.detach() if self.config.detach_rendering_weights else weights
        logits = trace.logits.detach() if self.config.detach_colours else trace.logits
        if not self.field.apart:
            return self._render_jacobians(replace(trace, logits=logits), weights, anchors)
        with torch.autocast(device_type=self.device.type, enabled=False):
            shares = jacobian.effective_weights(weights[anchors, :, 0].float(), self._background())
            heaviest = jacobian.heaviest_samples(shares, self.config.num_entity_samples)
            shares, logits, places = (
                torch.take_along_dim(part, heaviest.view(*heaviest.shape, *[1] * (part.ndim - 2)), dim=1)
                for part in (shares, logits[anchors].float(), trace.places[anchors])
            )
        activations = self.field.entities_at(places)  # in the precision of the rest of the field
        with torch.autocast(device_type=self.device.type, enabled=False):
            return jacobian.jacobian(shares, logits, activations.float(), "black").flatten(1)

    def _label_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        traced = self.trace(ray_bundle)
        rgb, snapshot = traced.outputs["rgb"], self._current_snapshot()
        if snapshot is None or not snapshot.labels:
            return {**traced.outputs, **nothing_to_show(rgb)}
        piece = Piece(traced)
        found = answers(piece, snapshot)
        shown = pictures(rgb, found, snapshot.decide(found), snapshot)
        relevancy = relevancies(piece, snapshot.relevancy)
        edited = edited_colour(self.trace, ray_bundle, traced, snapshot)
        return {**traced.outputs, **shown, "relevancy": relevancy, "edited": edited}

    @property
    def rays_at_once(self) -> int:
        """Rays of one chunk (`Tracer`): `eval_num_rays_per_chunk`, and on a GPU no more than its free memory takes."""
        return self._chunk_size.rays(self.config.eval_num_rays_per_chunk, self.bytes_per_ray, self.device)

    @property
    def bytes_per_ray(self) -> int:
        """Memory that a traced ray takes at its height, an upper bound: with hash grids in plain torch."""
        config = self.config
        proposals = zip(config.num_proposal_samples_per_ray, config.proposal_net_args_list, strict=False)
        looked_up = [count * shape["num_levels"] for count, shape in proposals]
        looked_up.append(config.num_nerf_samples_per_ray * config.num_levels)
        branches = config.entity_units * (1 if self.field.colour_branch is None else 2)
        units = UNITS_BESIDE + UNIT_COPIES * (config.hidden_dim_color + branches)
        return GRID_BYTES * max(looked_up) + FLOAT_BYTES * units * config.num_nerf_samples_per_ray

    @property
    def weights_version(self) -> tuple[int, int]:
        """Changes whenever the weights do: training step, and how often a checkpoint was loaded."""
        return self.step, self.loads

    def _current_snapshot(self) -> LabelSnapshot | None:
        return None if self.label_source is None else self.label_source()

    def trace(self, ray_bundle: RayBundle) -> Traced:
        """One field query of rays, outside of training, with all that Jacobians, responses and edits are made of."""
        assert not self.training, "traces are taken in eval mode"
        if self.collider is not None:
            ray_bundle = self.collider(ray_bundle)
        with self.field.recording() as traces:
            outputs = super().get_outputs(ray_bundle)
        trace = traces[0]
        weights = trace.ray_samples.get_weights(trace.density)
        with torch.autocast(device_type=self.device.type, enabled=False):
            return Traced(
                outputs=outputs,
                trace=trace,
                weights=weights[..., 0].float(),
                jacobians=self._render_jacobians(trace, weights),
                logits=trace.logits.float(),
                background=self._background(),
            )

    @torch.no_grad()
    def look(self, ray_bundle: RayBundle) -> tuple[Float[Tensor, "rays"], Float[Tensor, "rays"]]:
        """Return the expected distance along each ray, and its opacity (0..1); training goes on as if nobody looked.

        It is further off than `depth`, and smoother: what is seen in several views is put right by their agreement
        (`core/agreement.py`), and a head of fur comes apart less.
        """
        sampler = self.proposal_sampler
        since = sampler._steps_since_update
        found = []
        with in_eval_mode(self):
            for start in range(0, len(ray_bundle), self.rays_at_once):
                rays = ray_bundle[start : start + self.rays_at_once].to(self.device)
                rays = rays if self.collider is None else self.collider(rays)
                samples, _, _ = sampler(rays, density_fns=self.density_fns)
                weights = samples.get_weights(self.field.get_density(samples)[0]).float()
                found.append((self.renderer_expected_depth(weights, samples), self.renderer_accumulation(weights)))
        sampler._steps_since_update = since
        distances, opacities = (torch.cat(part)[..., 0].float() for part in zip(*found, strict=True))
        return distances, opacities

    def _background(self) -> jacobian.Background:
        """Return what is behind the samples; the viewer's and exporter's override is a constant colour like black."""
        return "black" if renderers.BACKGROUND_COLOR_OVERRIDE is not None else self.config.background_color

    @property
    def num_anchors(self) -> int:
        """Anchors wanted of a batch (`shaping.anchor_rays`)."""
        if self.config.num_shaping_rays is not None:
            return self.config.num_shaping_rays
        return CPU_SHAPING_RAYS if self.device.type == "cpu" else GPU_SHAPING_RAYS

    def _render_jacobians(
        self,
        trace: FieldTrace,
        weights: Float[Tensor, "rays samples 1"],
        anchors: Int[Tensor, "anchors"] | slice = slice(None),
    ) -> Float[Tensor, "anchors dims"]:
        """Jacobians of the chosen rays over the shaped layers, as vectors, in float32 whatever the rest runs in."""
        background = self._background()
        with torch.autocast(device_type=self.device.type, enabled=False):
            w, z = weights[anchors, :, 0].float(), trace.logits[anchors].float()
            a = trace.activations[anchors].float()
            parts = [jacobian.jacobian(w, z, a, background).flatten(1)]
            if self.config.shaped_layers == "rgb+trunk":
                assert trace.inputs is not None
                units = self.config.hidden_dim_color  # the entity branch has layers of its own
                rgb_weight = self.field.mlp_head.rgb_layer.weight[:, :units].float()
                inputs = trace.inputs[anchors].float()
                parts.append(jacobian.trunk_jacobian(w, z, a[..., :units], inputs, rgb_weight, background).flatten(1))
            return torch.cat(parts, dim=-1)

    @property
    def _logged(self) -> bool:
        """Whether losses and metrics of this step are looked at."""
        return not self.training or (self.log_every > 0 and self.step % self.log_every == 0)

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Nerfacto's metrics; while shaping also both shaping losses and the cosines of positive and negative pairs.

        `batch["features"]` are those of the anchors, or a future of them. In training steps that are not logged
        (`log_every`) only what a loss is made of is here.
        """
        if self._logged:
            metrics = super().get_metrics_dict(outputs, batch)
        else:
            metrics = {"distortion": nerfacto.distortion_loss(outputs["weights_list"], outputs["ray_samples_list"])}
        if "jacobians" in outputs:
            features = batch["features"]
            features = features.result() if isinstance(features, Future) else features
            features = features.to(self.device, non_blocking=True)
            with torch.autocast(device_type=self.device.type, enabled=False):
                jacobians, features = gather_rows(outputs["jacobians"]), gather_rows(features.float())
                terms, threshold = shaping.shaping_terms(
                    jacobians, features, self.pair_threshold, self.config.shaping, statistics=self._logged
                )
            self.pair_threshold.copy_(threshold)
            metrics.update({name: value for name, value in terms._asdict().items() if value is not None})
            metrics["pair_threshold"] = self.pair_threshold.clone()
        return metrics

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Nerfacto's losses; while shaping also `mig_loss` and `norm_loss`.

        That of the proposal networks is left out where they do not learn from it and it is not logged.
        """
        wanted = self._logged or any(part.requires_grad for part in outputs["weights_list"][:-1])
        with nullcontext() if wanted else proposal_loss_left_out():
            losses = super().get_loss_dict(outputs, batch, metrics_dict)
        if "jacobians" in outputs:
            assert metrics_dict is not None
            config = self.config.shaping
            share = shaping.decayed_share(self._steps_of_shaping, config.decay_steps, config.final_share)
            losses["mig_loss"] = share * config.mig_loss_mult * metrics_dict["mig"]
            losses["norm_loss"] = share * config.norm_loss_mult * metrics_dict["norm"]
        return losses

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Return outputs of a view, all of its rays from one snapshot of the labels."""
        return render_view(self, camera_ray_bundle, self._current_snapshot())

    @property
    def _shaped_units(self) -> Units:
        return "entity" if self.config.shaped_layers == "entity" else "all"

    @property
    def answers_as_shaped(self) -> bool:
        """Whether Jacobians are taken over what the teacher shaped, and not over other units for a comparison."""
        return self.field.mlp_head.recorded_units == self._shaped_units

    @contextmanager
    def answering_by(self, units: Units) -> Iterator[None]:
        """Take Jacobians over other units that the RGB layer reads, for a comparison.

        Beside a shaped entity branch the colour trunk is what it would be without shaping: what it answers shows what
        a field that was never shaped knows. Labels that are shown meanwhile are not of these units.
        """
        head = self.field.mlp_head
        before, head.recorded_units = head.recorded_units, units
        try:
            yield
        finally:
            head.recorded_units = before

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Colour and opacity; of `rgb_selected` just the selection is opaque, so that exporters take only that."""
        if output_name != "rgb_selected":
            return super().get_rgba_image(outputs, output_name)
        selection = outputs["selection"]
        self._empty_batches = 0 if bool(selection.any()) else self._empty_batches + 1
        with one_line_exit():
            if self._current_snapshot() is None or self._empty_batches >= EMPTY_BATCHES:
                raise UserError(
                    f"the selection is empty in {self._empty_batches} batches of rays: click the label (jacobinerf "
                    "annotate), or lower its threshold"
                )
        return torch.cat([outputs[output_name], selection.to(outputs[output_name])], dim=-1)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Nerfacto's image metrics, without LPIPS where its weights are not to be had (a NaN is not valid JSON)."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        return {name: value for name, value in metrics.items() if not math.isnan(value)}, images
