"""Bytes that no closed form gives: context, libraries, collectives, allocator. Named constants with their
measurement.

They are replaced by a measured profile where one exists. Until then they lean to the larger of what was
measured: a prediction that is too low costs an out-of-memory, one that is too high a few tokens of cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll_worker.launch import Device

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class RuntimeConstants:
    """What a device pays besides the model, bytes."""

    context: int
    """GPU: CUDA context and driver reserve. CPU: interpreter and libraries, resident."""
    libraries: int
    """GPU: cuBLAS and cuDNN workspaces and modules, Triton kernels, tables of the engine."""
    collectives_pair: int
    """NCCL and symmetric memory of a group of two ranks."""
    collectives_group: int
    """NCCL and symmetric memory of a group of more than two."""
    graph_pool: int
    """What captured decode steps share."""
    graph: int
    """What each adds, whatever the model."""
    weight_slack_permille: int
    """Allocator rounding over many weight tensors."""
    activation_slack_percent: int
    """Temporaries and allocator blocks over the closed form of the activations."""

    def communication(self, tensor: int) -> int:
        """Bytes of communication buffers on a rank of so many. Stages talk over TCP, from host memory."""
        return 0 if tensor == 1 else self.collectives_pair if tensor == 2 else self.collectives_group

    def cuda_graphs(self, sizes: int) -> int:
        """Bytes of decode steps that are captured in so many sizes."""
        return self.graph_pool + sizes * self.graph


GPU = RuntimeConstants(
    # H100 and H200, torch 2.11.0+cu130, driver 580, 2026-11: NVML after the first tensor 621 MiB; driver
    # reserve at idle 480 MiB (H100) and 615 MiB (H200), which counts against the line. Again: nvidia-smi
    # before and after torch.zeros.
    context=(621 + 615) * MIB,
    # H100, engine 0.2.0, 2026-11: the ledger's runtime, 1199 MiB for Llama-3.1-8B and 1241 MiB for Qwen3-0.6B
    # with 256 sequences, less context and the 480 MiB that the driver reserves there.
    libraries=140 * MIB,
    # H100, engine 0.2.0, torch 2.11.0+cu130, 2026-11: 568 MiB for NCCL and symmetric memory of a group of one
    # (tests/gpu/parallel_on_gpu.py, share), which has no buffers for others. Those of the first other and of
    # further ones are not measured: each as much as further ones take on A100 (published, NCCL 2.18, 2023).
    collectives_pair=(568 + 144) * MIB,
    collectives_group=(568 + 2 * 144) * MIB,
    # H100, engine 0.2.0, six models of 16 to 32 layers: 4 sizes took 94 MiB, 7 130, 11 130, 19 182, 35 232
    # and 246. A line through them is off by 16 at most; the number of layers explains nothing.
    # Engine 0.3.0, which captures prompts too, adds a layer's peak of up to 512 tokens: so they are off by -6
    # (Qwen3-14B, 10 sizes), +8 (Llama-3.1-8B, 29) and +53 MiB (SmolLM2-135M, 29).
    graph_pool=90 * MIB,
    graph=4608 * 1024,
    # H100: 14.96 GiB of weights took 14.99 GiB of allocator blocks (2 ‰); the next round number above.
    weight_slack_permille=4,
    # H100, engine 0.2.0, after 142,827 + 133,966 tokens of mixed load: 480 MiB are held and not used with
    # Llama-3.1-8B, 147 MiB with Qwen3-0.6B (chunks of 8192 tokens, 256 sequences).
    activation_slack_percent=30,
)

CPU = RuntimeConstants(
    # Python 3.11, torch 2.11, two cores, 2026-11: 543 MiB resident before the first weight, with the server
    # imported and the tokenizer read. How to measure it again: docs/sizing.md.
    context=545 * MIB,
    # Same machine, engine 0.2.0: the server has a process of its own, 60 MiB more than what the worker then
    # does without; and reading a GGUF file peaks 43 MiB above the weights.
    libraries=100 * MIB,
    collectives_pair=0,
    collectives_group=0,
    graph_pool=0,
    graph=0,
    weight_slack_permille=4,
    activation_slack_percent=20,
)


def runtime_constants(device: Device) -> RuntimeConstants:
    """The shipped constants for a kind of device."""
    return GPU if device is Device.GPU else CPU


def line(total_bytes: int, headroom_percent: int) -> int:
    """The most bytes of a device that may be in use: floor(total × (100 − headroom) / 100)."""
    return total_bytes * (100 - headroom_percent) // 100
