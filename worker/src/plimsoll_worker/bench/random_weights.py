"""A model of random weights, made where it will run: a benchmark needs a shape, not a download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from plimsoll_worker.loading.config_json import config_from_json
from plimsoll_worker.models.decoder import Decoder

SPREAD = 0.02
"""Standard deviation, as most models are initialised."""


def random_model(
    shape: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype, context: int, seed: int = 0
) -> Decoder:
    """A decoder of the shape (as config.json) for sequences of up to `context` tokens."""
    with torch.device("meta"):
        model = Decoder(config_from_json(shape))
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(model.named_parameters()):
        weight = torch.empty(parameter.shape, dtype=dtype, device=device)
        if "norm" in name:
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, SPREAD, generator=generator)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
    model.make_ready(context)
    return model.eval()
