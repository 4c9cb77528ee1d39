"""Kernels under Triton's interpreter: batches over a paged cache, and the error against FP64."""

from __future__ import annotations

import pytest
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def scalars_of_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes a loop's bounds `int(array)` of arrays of shape (1,), which NumPy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: object, scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
