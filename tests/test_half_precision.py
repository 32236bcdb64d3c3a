"""Under autocast: slopes of bright colours, and the gradients that are made of them."""

from copy import deepcopy

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from test_view_memory import some_rays
from torch import Tensor

from jacobinerf_ns.config import PAPER_MODEL
from jacobinerf_ns.core import jacobian
from jacobinerf_ns.field import ColourHead
from jacobinerf_ns.model import JacobiNeRFModel

HALVES = [torch.float16, torch.bfloat16]
BRIGHT = 12.0
"""A pre-sigmoid colour at which float16 and bfloat16 make 1 of p, and 0 of its slope."""
LOSS_SCALE = 2.0**16
"""What the gradient scaler begins with."""


def slopes_of(logits: Tensor) -> Tensor:
    """p (1 − p) as Jacobians have it: one sample with weight and activation 1."""
    one = torch.ones(len(logits), 1)
    return 3 * jacobian.jacobian(one, logits[:, None, None].expand(-1, 1, 3), one[..., None], "black")[:, 0, 0]


@pytest.mark.parametrize("half", HALVES)
def test_slopes_are_right_up_to_a_logit_of_twelve(half: torch.dtype):
    torch.manual_seed(0)
    wanted = torch.linspace(0, 12, 121)
    head = ColourHead(1, 4, 3, "torch")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(0.0)
        found = []
        for logit in wanted:
            head.rgb_layer.bias.fill_(float(logit))
            head.records = []
            with torch.autocast("cpu", half):
                colours = head(torch.zeros(1, 1))
            assert colours.dtype == torch.float32
            found.append(slopes_of(head.records[0].logits[:, 0])[0])
    exact = wanted.double().sigmoid() * (1.0 - wanted.double().sigmoid())
    assert float(((torch.stack(found).double() - exact).abs() / exact).max()) <= 1e-3


def bright_model() -> JacobiNeRFModel:
    """A fresh `jacobinerf-paper`, to which some rays are as bright as can be and others are not."""
    config = deepcopy(PAPER_MODEL)
    config.implementation, config.log2_hashmap_size = "torch", 10
    config.num_proposal_samples_per_ray, config.num_nerf_samples_per_ray = (16, 8), 8
    config.shaping_start_step = 0
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    model = config.setup(scene_box=box, num_train_data=4, metadata={}, device="cpu", grad_scaler=None)
    model.step, model.log_every = 0, 0
    layer = model.field.mlp_head.rgb_layer
    with torch.no_grad():
        shown = model.eval().trace(some_rays(64)).logits.amax(1)
        scale = BRIGHT / (shown.amax(0) - shown.amin(0))
        layer.weight.mul_(scale[:, None])
        layer.bias.copy_(scale * (layer.bias - shown.amin(0)))
    return model.train()


@pytest.mark.parametrize("half", HALVES)
def test_gradients_of_the_papers_method_are_finite_with_bright_rays(half: torch.dtype):
    torch.manual_seed(0)
    model = bright_model()
    batch = {"image": torch.rand(64, 3), "features": torch.rand(64, 8)}
    with torch.autocast("cpu", half):
        outputs = model(some_rays(64))
        losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
    assert {"mig_loss", "norm_loss"} <= losses.keys()
    (LOSS_SCALE * sum(losses.values(), torch.zeros(()))).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients["field.mlp_head.rgb_layer.bias"].norm() > 0
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
