"""Nerfacto's field with a colour head whose last layer is a plain linear layer, open to Jacobians.

Beside the colour trunk there may be branches: a coarse hash grid and a small network each, whose units are appended to
the trunk's before the RGB layer. The layer reads [trunk | colour branch | entity branch], so its Jacobian keeps its
closed form over the longer vector. Its weights for the entity branch are zero, and so are not kept: what belongs
together has room of its own, and colour does not notice it. (In runs of before there is one branch, which both use.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.mlp import MLP
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import Tensor, nn

ShapedLayers = Literal["rgb", "rgb+trunk", "entity"]
Units = Literal["all", "trunk", "entity"]


@dataclass
class FieldTrace:
    """What one field query leaves behind for Jacobians (letters of `jacobian.py`)."""

    ray_samples: RaySamples
    density: Float[Tensor, "rays samples 1"]
    colours: Float[Tensor, "rays samples channels"]
    logits: Float[Tensor, "rays samples channels"]
    """Pre-sigmoid colours."""
    activations: Float[Tensor, "rays samples hidden"]
    """Units whose weights in the RGB layer are shaped and perturbed: all that colour reads, or the entity branch's."""
    places: Float[Tensor, "rays samples 3"]
    """Where samples are, in 0..1 as hash grids have them; a constant."""
    inputs: Float[Tensor, "rays samples inputs"] | None
    """Inputs of the last trunk layer; None where the trunk is one fused tiny-cuda-nn kernel that hides them."""


@dataclass(frozen=True)
class BranchShape:
    """Size of a branch, and how many there are; 0 units is none, the paper's architecture."""

    units: int = 0
    """Units of both layers, and inputs that the RGB layer gains."""
    apart: bool = False
    """Whether colour has a branch of its own, and not the entity branch."""
    levels: int = 6
    """Levels of the hash grid."""
    base_res: int = 16
    """Cells along each axis of the coarsest level; the contracted scene is 4 scene units wide."""
    max_res: int = 64
    """Cells along each axis of the finest level."""
    log2_hashmap_size: int = 15
    """Entries per level, as a power of two."""


class Branch(nn.Module):
    """Units that know where they are and not from where they are seen: a coarse hash grid, two layers, ReLU."""

    def __init__(self, shape: BranchShape, implementation: Literal["tcnn", "torch"]) -> None:
        super().__init__()
        self.encoding = HashEncoding(
            num_levels=shape.levels,
            min_res=shape.base_res,
            max_res=shape.max_res,
            log2_hashmap_size=shape.log2_hashmap_size,
            implementation=implementation,
        )
        self.layers = nn.Sequential(
            nn.Linear(self.encoding.get_out_dim(), shape.units),
            nn.ReLU(),
            nn.Linear(shape.units, shape.units),
            nn.ReLU(),
        )

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points units"]:
        """Activations at points in 0..1, as the field's own hash grid has them."""
        return self.layers(self.encoding(positions).to(positions))


class HeadRecord(NamedTuple):
    """What Jacobians are made of at the points of one query, flat; as in `FieldTrace`."""

    logits: Float[Tensor, "points channels"]
    activations: Float[Tensor, "points hidden"]
    inputs: Float[Tensor, "points inputs"] | None


class ColourHead(nn.Module):
    """Nerfacto's colour head cut open before its last layer: a trunk ending in ReLU, a linear RGB layer, a sigmoid.

    The trunk may be tiny-cuda-nn; the RGB layer is always torch, since a fused kernel would hide it. It reads the
    trunk's units, and after them those of a branch where there is one.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        num_layers: int,
        implementation: Literal["tcnn", "torch"],
        branch_units: int = 0,
    ) -> None:
        super().__init__()
        self.trunk = MLP(
            in_dim=in_dim,
            num_layers=num_layers - 1,
            layer_width=hidden,
            out_dim=hidden,
            activation=nn.ReLU(),
            out_activation=nn.ReLU(),
            implementation=implementation,
        )
        self.rgb_layer = nn.Linear(hidden + branch_units, 3)
        self.branch: Tensor | None = None
        """Activations of the branch that colour reads at the points that are asked next; the field hands them over."""
        self.entity: Tensor | None = None
        """Those of the entity branch there, while they are recorded."""
        self.gradient_below = 1.0
        """Share of the gradient of recorded activations that goes on below the trunk, to geometry features."""
        self.recorded_units: Units = "all"
        """Which of the units that the RGB layer reads are recorded."""
        self.records: list[HeadRecord] | None = None

    def forward(self, features: Float[Tensor, "points features"]) -> Float[Tensor, "points channels"]:
        """Colour in 0..1 of points, from their direction, geometry and appearance features."""
        inputs, trunk = self.hidden(features)
        # Slopes p(1 − p) are differences of nearly equal numbers in half precision.
        with torch.autocast(device_type=features.device.type, enabled=False):
            logits = self.rgb_layer(self._joined(trunk).to(self.rgb_layer.weight.dtype))
        if self.records is not None:
            self.records.append(self._record(features, inputs, trunk, logits))
        return torch.sigmoid(logits)

    def _joined(self, trunk: Float[Tensor, "points trunk"]) -> Float[Tensor, "points hidden"]:
        return trunk if self.branch is None else torch.cat([trunk, self.branch.to(trunk)], dim=-1)

    def _record(
        self,
        features: Float[Tensor, "points features"],
        inputs: Tensor | None,
        trunk: Float[Tensor, "points trunk"],
        logits: Float[Tensor, "points channels"],
    ) -> HeadRecord:
        if self.recorded_units == "entity":
            assert self.entity is not None
            return HeadRecord(logits, self.entity, None)
        if self.recorded_units == "trunk":
            return HeadRecord(logits, trunk, None)
        if self.training and self.gradient_below < 1.0:
            inputs, trunk = self.hidden(_scale_gradient(features, self.gradient_below))
        return HeadRecord(logits, self._joined(trunk), inputs)

    def hidden(
        self, features: Float[Tensor, "points features"]
    ) -> tuple[Float[Tensor, "points inputs"] | None, Float[Tensor, "points hidden"]]:
        """Return inputs of the last trunk layer (None for a fused trunk) and trunk activations."""
        if self.trunk.tcnn_encoding is not None:
            return None, self.trunk(features)
        inputs = features
        for layer in self.trunk.layers[:-1]:
            inputs = torch.relu_(layer(inputs))
        return inputs, torch.relu_(self.trunk.layers[-1](inputs))


class JacobiNeRFField(NerfactoField):
    """`NerfactoField` that can record trunk activations while it answers a query.

    Recording is on for one query at a time (`with field.recording() as traces`): nothing is kept alive between queries,
    and the ordinary path costs nothing.
    """

    def __init__(
        self,
        *args: Any,
        num_layers_color: int = 3,
        hidden_dim_color: int = 64,
        implementation: Literal["tcnn", "torch"] = "tcnn",
        branch: BranchShape = BranchShape(),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            num_layers_color=num_layers_color,
            hidden_dim_color=hidden_dim_color,
            implementation=implementation,
            **kwargs,
        )
        in_dim = self.direction_encoding.get_out_dim() + self.geo_feat_dim + self.appearance_embedding_dim
        self.mlp_head = ColourHead(in_dim, hidden_dim_color, num_layers_color, implementation, branch.units)
        self.entity_branch = Branch(branch, implementation) if branch.units else None
        self.colour_branch = Branch(branch, implementation) if branch.units and branch.apart else None
        self.parted = False
        """Whether the entity branch has parted from colour's; until then that answers for both."""
        self._traces: list[FieldTrace] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[FieldTrace]]:
        """Collect one `FieldTrace` per `forward` inside the block; an outer block gets those of an inner one too."""
        outer, traces = self._traces, []
        self._traces, self.mlp_head.records = traces, []
        try:
            yield traces
        finally:
            self._traces = outer
            self.mlp_head.records = None if outer is None else []
            if outer is not None:
                outer.extend(traces)

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """Colour of samples, as nerfacto's field answers, with the branches at the places of `get_density`.

        Places enter branches as constants: neither cameras nor normals follow them.
        """
        head = self.mlp_head
        if self.entity_branch is not None:
            places = self._sample_locations.detach().view(-1, 3)
            head.branch = head.entity = (self.colour_branch or self.entity_branch)(places)
            if self.apart and self._traces is not None:
                head.entity = self.entity_branch(places) if head.recorded_units == "entity" else None
        try:
            return super().get_outputs(ray_samples, density_embedding)
        finally:
            head.branch = head.entity = None

    @property
    def apart(self) -> bool:
        """Whether colour does not read the entity branch."""
        return self.parted and self.colour_branch is not None

    def entities_at(self, places: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points units"]:
        """Units of the entity branch at places in 0..1."""
        assert self.entity_branch is not None
        return self.entity_branch(places.reshape(-1, 3)).view(*places.shape[:-1], -1)

    @torch.no_grad()
    def part(self) -> None:
        """Let the entity branch go on from where colour's is, and apart from it."""
        if self.colour_branch is not None and self.entity_branch is not None and not self.parted:
            self.entity_branch.load_state_dict(self.colour_branch.state_dict())
        self.parted = True

    def forward(self, ray_samples: RaySamples, compute_normals: bool = False) -> dict[FieldHeadNames, Tensor]:
        """Density and colour of samples, as nerfacto's field answers; recorded when recording."""
        outputs = super().forward(ray_samples, compute_normals=compute_normals)
        if self._traces is not None and self.mlp_head.records is not None:
            record = self.mlp_head.records.pop()
            shape = outputs[FieldHeadNames.RGB].shape[:-1]
            self._traces.append(
                FieldTrace(
                    ray_samples=ray_samples,
                    density=outputs[FieldHeadNames.DENSITY],
                    colours=outputs[FieldHeadNames.RGB],
                    logits=record.logits.view(*shape, -1),
                    activations=record.activations.view(*shape, -1),
                    places=self._sample_locations.detach().view(*shape, 3),
                    inputs=None if record.inputs is None else record.inputs.view(*shape, -1),
                )
            )
        return outputs


def _scale_gradient(values: Float[Tensor, "points features"], share: float) -> Float[Tensor, "points features"]:
    """Return the values as they are, with a share of their gradient."""
    return share * values + (1.0 - share) * values.detach()
