"""A plan in the words of the launch contract: how weights and cache are kept."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.actuate.test_pods import HUB, plan, revision, spec

from plimsoll.actuate.launches import launch
from plimsoll_worker.launch import Precision, WeightsScheme


@pytest.mark.parametrize(
    ("planned", "weights", "cache"),
    [
        ({}, WeightsScheme.plain(Precision.BF16), "BF16"),
        (
            {"weights": Precision.INT4, "compute": Precision.BF16, "kv_cache": Precision.FP8},
            WeightsScheme.quantized(Precision.INT4, Precision.BF16),
            "FP8",
        ),
        (
            {"weights": Precision.FP8, "compute": Precision.FP16},
            WeightsScheme.quantized(Precision.FP8, Precision.FP16),
            "BF16",
        ),
        ({"checkpoint_format": "gptq"}, WeightsScheme.stored("gptq", Precision.BF16), "BF16"),
    ],
    ids=["as stored in 16 bit", "INT4 and an FP8 cache", "FP8 beside FP16", "a quantized checkpoint"],
)
def test_the_launch_says_how_weights_and_cache_are_kept(
    planned: dict[str, Any], weights: WeightsScheme, cache: str
) -> None:
    decided = plan().model_copy(update=planned)
    made = launch(revision(spec(HUB)), decided, decided.placements[0], 0)
    assert (made.weights, made.kv_cache) == (weights, cache)
