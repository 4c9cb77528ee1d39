"""Kernels under Triton's interpreter: batches over a paged cache, and the error against FP64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def scalars_of_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes a loop's bounds `int(array)` of arrays of shape (1,), which NumPy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: object, scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.fixture(autouse=True)
def fp8_numbers_that_round_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 rounds 1.97 to 1.0 in FP8: what a mantissa carries never reaches the exponent."""
    convert = interpreter._convert_float

    def converted(data: Any, source: tl.dtype, target: tl.dtype, rounding: Any) -> Any:
        if target != tl.float8e4nv:
            return convert(data, source, target, rounding)
        assert source == tl.float32
        numbers = torch.from_numpy(np.ascontiguousarray(data)).to(torch.float8_e4m3fn)
        return numbers.view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", converted)
