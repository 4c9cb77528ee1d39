"""`quantization_config` of a config.json → how its matrices are packed. What would change the answer and is
not read is refused by the name of its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plimsoll_worker.errors import ModelUnsupported
from plimsoll_worker.kernels.matrix import FP8_BLOCK
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.fields import Fields
from plimsoll_worker.quant.eight_bits import Bytes
from plimsoll_worker.quant.four_bits import Awq, Gptq, PackedIntegers
from plimsoll_worker.quant.stored import Layout


def layout_of(values: Mapping[str, Any], source: str) -> tuple[str, Layout]:
    """(format, layout) of the object `quantization_config`. Raises ModelUnsupported, ModelUnreadable."""
    fields = Fields(values, source, "quantization_config.")
    method = values.get("quant_method")
    reader = _READERS.get(str(method))
    if reader is None:
        raise fields.refuse(
            "quant_method", f"this engine loads {', '.join(_READERS)}; use the original model"
        )
    return str(method), reader(fields)


def _four(fields: Fields, name: str) -> None:
    if fields.integer(name, 4) != 4:
        raise fields.refuse(name, "this engine loads 4 bits of this format; use the original model")


def _gptq(fields: Fields) -> Layout:
    _four(fields, "bits")
    if fields.flag("desc_act", default=False):
        raise fields.refuse(
            "desc_act", "this engine keeps columns in their own order; use the original model"
        )
    version = fields.values.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise fields.refuse("checkpoint_format", "this engine loads gptq and gptq_v2")
    return Gptq(zero_offset=1 if version == "gptq" else 0)


def _awq(fields: Fields) -> Layout:
    _four(fields, "bits")
    if str(fields.values.get("version") or "gemm").lower() != "gemm":
        raise fields.refuse("version", "this engine loads the layout gemm")
    return Awq()


def _fp8(fields: Fields) -> Layout:
    block = fields.values.get("weight_block_size")
    if block is None:
        return Bytes(Precision.FP8, ".weight_scale")
    if block != [FP8_BLOCK, FP8_BLOCK]:
        raise fields.refuse("weight_block_size", f"this engine loads blocks of {FP8_BLOCK} x {FP8_BLOCK}")
    return Bytes(Precision.FP8, ".weight_scale_inv", in_blocks=True)


def _compressed(fields: Fields) -> Layout:
    groups = fields.part("config_groups")
    if len(groups.values) != 1:
        raise fields.refuse("config_groups", "this engine loads one group")
    weights = groups.part(next(iter(groups.values))).part("weights")
    bits, kind = weights.integer("num_bits"), weights.values.get("type", "int")
    layout = fields.values.get("format")
    if layout == "pack-quantized" and kind == "int" and bits in (4, 8):
        return PackedIntegers(bits)
    if layout in ("float-quantized", "naive-quantized") and kind == "float" and bits == 8:
        return Bytes(Precision.FP8, ".weight_scale")
    if layout in ("int-quantized", "naive-quantized") and kind == "int" and bits == 8:
        if not weights.flag("symmetric", default=True):
            raise weights.refuse("symmetric", "this engine keeps 8-bit integers without zero points")
        return Bytes(Precision.INT8, ".weight_scale")
    raise ModelUnsupported(
        f"{fields.source}: quantization_config.format is {layout!r} of {bits} bits ({kind}): this engine"
        " loads pack-quantized (4 and 8 bits), float-quantized and int-quantized (8 bits)"
    )


_READERS: Mapping[str, Callable[[Fields], Layout]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": _compressed,
}
