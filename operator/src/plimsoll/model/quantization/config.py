"""`quantization_config` → which matrices of a checkpoint are packed, and how.

A method that is not known, or a variant of one whose layout is not known, is refused by name where only a
config.json is given; with headers at hand nothing of this is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from plimsoll.model.errors import FileUnreadable, FormatUnsupported, ModelError
from plimsoll.model.facts import PackedMatrices
from plimsoll.model.fields import Fields
from plimsoll.model.quantization.companions import canonical
from plimsoll.model.quantization.packing import Packing

METHODS = ("gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "modelopt")
KEPT = ("gptq", "awq", "fp8", "compressed-tensors")
"""Methods of which `kept_as` knows layouts."""
MAX_GROUP = 65_536
MAX_REPETITIONS = 4
MAX_PATTERN = 200
"""Longer `re:` patterns in an ignore list are refused: they come from a file nobody vouches for."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a checkpoint is quantized."""

    method: str
    packing: Packing
    ignored: tuple[str, ...] = ()
    only: str = ""
    """A part of the names of all that is packed; empty: every linear layer."""
    head: bool = False
    """Whether the head is packed unless it is ignored by name."""
    kv_scales: bool = False

    def packs(self, module: str) -> bool:
        """Whether the linear layer of this full name is packed."""
        if module == "lm_head" and not self.head:
            return False
        return self.only in module and not any(_matches(pattern, module) for pattern in self.ignored)


def kept_as(values: Mapping[str, object], where: str) -> PackedMatrices | None:
    """What the matrices become in the engine, exactly; None where it has no form for them, or the layout is
    not read."""
    try:
        packing = scheme(Fields(values, where)).packing
    except ModelError:
        return None
    match packing.format:
        case "gptq" | "awq" if packing.bits == 4 and not values.get("desc_act"):
            return PackedMatrices(precision="INT4", group=packing.group)
        case "pack" if packing.bits == 4 and not packing.reordered:
            return PackedMatrices(precision="INT4", group=packing.group)
        case "pack" if packing.bits == 8 and packing.symmetric and not packing.group:
            return PackedMatrices(precision="INT8")
        case "int8" if not packing.group:
            return PackedMatrices(precision="INT8")
        case "fp8-block" if packing.block == (128, 128):
            return PackedMatrices(precision="FP8", in_blocks=True)
        case "fp8-tensor" | "fp8-channel" if not packing.group:
            return PackedMatrices(precision="FP8")
    return None


def scheme(f: Fields) -> Scheme:
    """What `quantization_config` says. Raises FormatUnsupported or FileUnreadable."""
    method = f.text("quant_method")
    reader = _READERS.get(method)
    if reader is None:
        raise FormatUnsupported(
            f"{f.name}: quant_method {method!r:.80} is not read from config.json alone; known are"
            f" {', '.join(METHODS)}; point at the repository or folder to read its headers"
        )
    return reader(f)


@lru_cache(maxsize=4096)
def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    pattern = canonical(pattern)
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."


def _ignored(f: Fields, key: str) -> tuple[str, ...]:
    value = f.values.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise FileUnreadable(f"{f.name}: {key}: expected names of modules, found {value!r:.80}")
    for entry in value:
        if entry.startswith("re:"):
            _require_pattern(f, key, entry)
    return tuple(value)


def _require_pattern(f: Fields, key: str, entry: str) -> None:
    # A repeated group can take exponential time, many repetitions a high power: no published list has them.
    repeated = re.search(r"\)\s*[*+{]", entry) is not None
    if len(entry) > MAX_PATTERN or repeated or len(re.findall(r"[*+{]", entry)) > MAX_REPETITIONS:
        raise FormatUnsupported(f"{f.name}: {key}: the pattern {entry!r:.80} is not read")
    try:
        re.compile(entry[3:])
    except re.error as error:
        raise FileUnreadable(f"{f.name}: {key}: {entry!r:.80} is no pattern: {error}") from error


def _group(f: Fields, key: str = "group_size") -> int:
    value = f.values.get(key)
    return 0 if value in (None, -1) else f.size(key, most=MAX_GROUP)


def _gptq(f: Fields) -> Scheme:
    packing = Packing(format="gptq", bits=f.size("bits", default=4, most=8), group=_group(f))
    return Scheme(
        method="gptq", packing=packing, head=f.flag("lm_head", default=False),
        ignored=_ignored(f, "modules_to_not_convert"),
    )  # fmt: skip


def _awq(f: Fields) -> Scheme:
    version = f.text("version", "gemm").lower()
    if version != "gemm":
        raise FormatUnsupported(f"{f.name}: version {version!r:.80}: the layout gemm is read")
    packing = Packing(format="awq", bits=f.size("bits", default=4, most=8), group=_group(f))
    return Scheme(method="awq", packing=packing, ignored=_ignored(f, "modules_to_not_convert"))


def _bitsandbytes(f: Fields) -> Scheme:
    ignored = _ignored(f, "llm_int8_skip_modules")
    if f.flag("load_in_8bit", default=False):
        return Scheme(method="bitsandbytes", packing=Packing(format="bnb-int8"), ignored=ignored)
    double = f.flag("bnb_4bit_use_double_quant", default=False)
    return Scheme(method="bitsandbytes", packing=Packing(format="nf4", double=double), ignored=ignored)


def _is_block(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_GROUP


def _fp8(f: Fields) -> Scheme:
    static = f.text("activation_scheme", "dynamic") == "static"
    block = f.values.get("weight_block_size")
    ignored = _ignored(f, "modules_to_not_convert") + _ignored(f, "ignored_layers")
    if block is None:
        packing = Packing(format="fp8-tensor", static_input=static)
    elif isinstance(block, list) and len(block) == 2 and all(map(_is_block, block)):
        packing = Packing(format="fp8-block", block=(block[0], block[1]), static_input=static)
    else:
        raise FileUnreadable(f"{f.name}: weight_block_size: expected two sizes, found {block!r:.80}")
    return Scheme(method="fp8", packing=packing, ignored=ignored)


def _fbgemm(f: Fields) -> Scheme:
    ignored = _ignored(f, "modules_to_not_convert")
    return Scheme(method="fbgemm_fp8", packing=Packing(format="fbgemm"), ignored=ignored)


def _mxfp4(f: Fields) -> Scheme:
    ignored = _ignored(f, "modules_to_not_convert")
    return Scheme(method="mxfp4", packing=Packing(format="mxfp4"), only=".experts.", ignored=ignored)


def _compressed(f: Fields) -> Scheme:
    groups = f.part("config_groups")
    if groups is None or len(groups.values) != 1:
        raise FormatUnsupported(
            f"{f.name}: config_groups: one group is read from config.json alone; point at the repository"
        )
    group = groups.part(next(iter(groups.values)))
    weights = group.part("weights") if group is not None else None
    if group is None or weights is None:
        raise FileUnreadable(f"{groups.name}: weights: expected an object")
    if group.values.get("targets") != ["Linear"]:
        raise group.refuse("targets", "the target Linear is read from config.json alone")
    inputs = group.part("input_activations")
    static = inputs is not None and inputs.values.get("dynamic") is False
    packing = _compressed_packing(f.text("format"), weights, static)
    return Scheme(
        method="compressed-tensors", packing=packing, head=True, ignored=_ignored(f, "ignore"),
        kv_scales=f.values.get("kv_cache_scheme") is not None,
    )  # fmt: skip


def _compressed_packing(layout: str, weights: Fields, static: bool) -> Packing:
    bits, group = weights.size("num_bits", most=16), _group(weights)
    strategy = weights.text("strategy", "tensor")
    match layout:
        case "pack-quantized":
            return Packing(
                format="pack", bits=bits, group=group,
                symmetric=weights.flag("symmetric", default=True),
                reordered=weights.values.get("actorder") == "group",
            )  # fmt: skip
        case "float-quantized" | "naive-quantized" if strategy == "tensor" and bits == 8:
            return Packing(format="fp8-tensor", static_input=static)
        case "float-quantized" | "naive-quantized" if strategy in ("channel", "group") and bits == 8:
            return Packing(format="fp8-channel", group=group, static_input=static)
        case "int-quantized" if bits == 8:
            return Packing(format="int8", group=group, static_input=static)
        case "nvfp4-pack-quantized":
            return Packing(format="nvfp4-pack", static_input=True)
        case "mxfp4-pack-quantized":
            return Packing(format="mxfp4-pack")
    raise FormatUnsupported(
        f"{weights.name}: {layout!r:.80} with strategy {strategy!r:.80} and {bits} bits is not read from"
        " config.json alone; point at the repository"
    )


def _modelopt(f: Fields) -> Scheme:
    algorithm = f.text("quant_algo").upper()
    ignored = _ignored(f, "ignore") + _ignored(f, "exclude_modules")
    formats: dict[str, Packing] = {
        "NVFP4": Packing(format="nvfp4", static_input=True),
        "FP8": Packing(format="fp8-tensor", static_input=True),
    }
    if algorithm not in formats:
        raise FormatUnsupported(f"{f.name}: quant_algo {algorithm!r:.80}: known are {', '.join(formats)}")
    return Scheme(
        method="modelopt", packing=formats[algorithm], ignored=ignored, head=True,
        kv_scales=f.values.get("kv_cache_scheme") is not None,
    )  # fmt: skip


_READERS: dict[str, Callable[[Fields], Scheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "compressed-tensors": _compressed,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
}
