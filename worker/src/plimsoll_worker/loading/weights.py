"""Puts a checkpoint's tensors into a model, one at a time.

The model is built without storage ("meta") and each parameter replaced by the tensor read, so that the peak
is the weights and one tensor. Filling allocated parameters instead would hold both for every tensor that
needs no conversion.
"""

from __future__ import annotations

import torch
from torch import nn

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import Checkpoint
from plimsoll_worker.models.llama import LlamaModel
from plimsoll_worker.progress import say

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def load_model(checkpoint: Checkpoint, *, device: torch.device, precision: Precision) -> LlamaModel:
    """The checkpoint's model on `device` in `precision`, ready for inference.

    Raises ModelUnreadable when a tensor is missing or misshapen, ModelUnsupported when one has no place in
    the model.
    """
    with torch.device("meta"):
        model = LlamaModel(checkpoint.config)
    parameters = dict(model.named_parameters())
    stored = set(checkpoint.names())
    if missing := sorted(parameters.keys() - stored):
        raise ModelUnreadable(f"the checkpoint lacks {len(missing)} tensors, the first is {missing[0]}")
    if strange := sorted(stored - parameters.keys()):
        raise ModelUnsupported(
            f"the checkpoint has {len(strange)} tensors this engine has no place for: {strange[0]}"
        )
    told = 0
    for count, (name, expected) in enumerate(parameters.items(), start=1):
        tensor = checkpoint.read(name)
        if tensor.shape != expected.shape:
            raise ModelUnreadable(
                f"tensor {name} is {list(tensor.shape)}, the configuration says {list(expected.shape)}"
            )
        owner, _, leaf = name.rpartition(".")
        tensor = tensor.to(device=device, dtype=DTYPES[precision]).contiguous()
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
        if (tenth := 10 * count // len(parameters)) > told:
            told = tenth
            say("Loading", percent=10 * tenth, tensors=count)
    model.rotary.to_device(device)
    return model.eval()
