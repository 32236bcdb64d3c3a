"""LPIPS that asks for its weights when they are needed, and not when a model is built."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LazyLpips(nn.Module):
    """LPIPS whose weights are fetched when it is first asked for, and which is silent where they cannot be had.

    Not registered as a part of the model: its weights belong to no checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._arguments = (args, kwargs)
        self._metric: list[nn.Module] = []
        self._unavailable = False

    def forward(self, *images: Float[Tensor, "1 3 height width"]) -> Float[Tensor, ""]:
        """LPIPS of two images, or NaN where the weights are missing."""
        if not self._metric and not self._unavailable:
            self._fetch(images[0].device)
        if self._unavailable:
            return torch.tensor(float("nan"))
        return self._metric[0](*images)

    def _fetch(self, device: torch.device) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        args, kwargs = self._arguments
        try:
            self._metric = [LearnedPerceptualImagePatchSimilarity(*args, **kwargs).to(device)]
        except OSError as error:
            self._unavailable = True
            warnings.warn(f"LPIPS is left out of the metrics, its weights cannot be fetched: {error}", stacklevel=2)
