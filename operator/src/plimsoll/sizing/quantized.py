"""Bytes of a layer whose matrices are quantized while they are loaded.

Scales follow the rows of a matrix, so its shape is needed, and the facts count elements by role. The shapes
are recovered from the role and the model's widths: projections to heads and up-projections read `hidden`
columns, output and down-projections write `hidden` rows. What is left over is biases. A group whose shapes
cannot be told stays in 16 bit, which errs to the larger.

Embedding, head, norms, routers, biases, latents (decoding absorbs their up-projections in 16 bit) and
recurrent projections (their errors add up over a sequence) stay in 16 bit by rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plimsoll.model.facts import LayerClass, ModelFacts, Role, TensorGroup
from plimsoll.sizing.parallel import ParallelRefused, rank_share
from plimsoll.sizing.schemes import QuantizationScheme, Quantized, blocks_of

GATED, PLAIN = 3, 2
"""Matrices of a feed-forward block: gate, up and down, or up and down."""
_CUT_BY_COLUMNS = {
    Role.ATTENTION_Q: "output projection",
    Role.MLP: "down projection",
    Role.EXPERT: "experts' down projection",
}
EXPERT_WIDTH = "columns of an expert"
SHARED_WIDTHS = ("columns of the shared expert", "columns of the shared MLP")


@dataclass(frozen=True)
class Matrix:
    """`copies` matrices alike. Tensor parallelism cuts either their rows or their columns."""

    rows: int
    columns: int
    cut_columns: bool = False
    copies: int = 1

    @property
    def elements(self) -> int:
        return self.copies * self.rows * self.columns


@dataclass(frozen=True)
class LayerParts:
    """One layer on one rank."""

    quantized: int
    """Numbers in the scheme."""
    packed_bytes: int
    scale_bytes: int
    rest: int
    """Numbers that stay unquantized."""

    def total(self, kept: Quantized) -> int:
        return self.packed_bytes + self.scale_bytes + self.rest * kept.rest.bytes


def matrices(group: TensorGroup, facts: ModelFacts, layer: LayerClass) -> tuple[Matrix, ...]:
    """The matrices of a group that are quantized; none when it stays in 16 bit."""
    match group.role:
        case Role.ATTENTION_Q if layer.value_dim:
            found = _queries(group, facts, layer)
        case Role.ATTENTION_KV if layer.value_dim:
            found = _keys_values(group, facts, layer)
        case Role.MLP:
            widths = (facts.intermediate, *widths_of(facts, *SHARED_WIDTHS))
            found = _feed_forward(group.elements, facts.hidden, widths)
        case Role.EXPERT:
            found = _experts(group.elements, facts)
        case _:
            return ()
    return found if sum(matrix.elements for matrix in found) <= group.elements else ()


def _queries(group: TensorGroup, facts: ModelFacts, layer: LayerClass) -> tuple[Matrix, ...]:
    output = Matrix(facts.hidden, facts.heads * layer.value_dim, cut_columns=True)
    unit = facts.heads * layer.key_dim
    # A gated attention projects queries and gates: twice the rows.
    rows = max(0, group.elements - output.elements) // facts.hidden // unit * unit
    return (Matrix(rows, facts.hidden), output) if rows else ()


def _keys_values(group: TensorGroup, facts: ModelFacts, layer: LayerClass) -> tuple[Matrix, ...]:
    keys, values = layer.kv_heads * layer.key_dim, layer.kv_heads * layer.value_dim
    rows = keys + values if group.elements >= (keys + values) * facts.hidden else keys
    return (Matrix(rows, facts.hidden),) if rows else ()


def _feed_forward(elements: int, hidden: int, widths: tuple[int, ...]) -> tuple[Matrix, ...]:
    for width in widths:
        count, biases = divmod(elements, hidden * width)
        if count in (PLAIN, GATED) and biases <= 2 * width:
            return Matrix((count - 1) * width, hidden), Matrix(hidden, width, cut_columns=True)
    return ()


def _experts(elements: int, facts: ModelFacts) -> tuple[Matrix, ...]:
    for width in widths_of(facts, EXPERT_WIDTH):
        count = elements // (facts.hidden * width)
        each = PLAIN if count % GATED else GATED
        if count >= each and count % each == 0:
            up = Matrix((each - 1) * width, facts.hidden, copies=count // each)
            return up, Matrix(facts.hidden, width, cut_columns=True, copies=count // each)
    return ()


def widths_of(facts: ModelFacts, *names: str) -> tuple[int, ...]:
    """Divisors of the model that are called so."""
    return tuple(divisor.count for divisor in facts.divisors if divisor.what in names)


def layer_parts(facts: ModelFacts, layer: LayerClass, tensor: int, kept: Quantized) -> LayerParts:
    """What one rank holds of one layer."""
    numbers = packed = scales = rest = 0
    for group in _by_role(layer):
        held, of = rank_share(group, facts, layer, tensor)
        found = matrices(group, facts, layer)
        for matrix in found:
            rows, columns = matrix.rows, matrix.columns
            if matrix.cut_columns:
                columns = -(-columns * held // of)
            else:
                rows = -(-rows * held // of)
            count, scaled = matrix.copies * rows, matrix.copies * -(-rows // kept.scheme.rows_per_scale)
            numbers += count * columns
            scales += scaled * kept.scheme.scale_bytes(columns, kept.rest)
            packed += count * kept.scheme.packed_bytes(columns)
        left = group.elements - sum(matrix.elements for matrix in found)
        rest += -(-left * held // of)
    return LayerParts(numbers, packed, scales, rest)


def _by_role(layer: LayerClass) -> Iterator[TensorGroup]:
    """One group of each role: what is rounded comes in any type, in GGUF files often in several."""
    for role in dict.fromkeys(group.role for group in layer.groups):
        alike = [group for group in layer.groups if group.role is role]
        elements, size = sum(group.elements for group in alike), sum(group.bytes for group in alike)
        yield alike[0].model_copy(update={"elements": elements, "bytes": size})


def check_groups(facts: ModelFacts, scheme: QuantizationScheme, tensor: int) -> None:
    """Raise ParallelRefused where a cut through the columns of a matrix would split a group of its scales."""
    if scheme.group is None or tensor == 1:
        return
    for what, columns in dict.fromkeys(_cut_columns(facts)):
        if columns % (tensor * scheme.group):
            raise _splits(scheme, tensor, columns, what)


def _splits(scheme: QuantizationScheme, tensor: int, columns: int, what: str) -> ParallelRefused:
    return ParallelRefused(
        f"{scheme.name} keeps a scale for {scheme.group} columns: {columns} columns of the {what}"
        f" over tensor parallel {tensor} are {columns / tensor:g} a rank, not whole groups"
    )


def check_blocks(facts: ModelFacts, tensor: int) -> None:
    """The same for a GGUF file whose blocks stay."""
    for layer in facts.layers:
        for group in layer.groups:
            if scheme := blocks_of(group):
                _check_cut(facts, layer, group, scheme, tensor)


def _check_cut(
    facts: ModelFacts, layer: LayerClass, group: TensorGroup, scheme: QuantizationScheme, tensor: int
) -> None:
    columns = {Role.ATTENTION_Q: facts.heads * layer.value_dim, Role.MLP: facts.intermediate}
    assert scheme.group is not None
    if columns.get(group.role, 0) % (tensor * scheme.group):
        raise _splits(scheme, tensor, columns[group.role], _CUT_BY_COLUMNS[group.role])


def _cut_columns(facts: ModelFacts) -> Iterator[tuple[str, int]]:
    for layer in facts.layers:
        for group in _by_role(layer):
            for matrix in matrices(group, facts, layer):
                if matrix.cut_columns:
                    yield _CUT_BY_COLUMNS[group.role], matrix.columns
