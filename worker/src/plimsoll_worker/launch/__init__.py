"""Everything that crosses the border between the operator and a worker, in one torch-free package.

The operator writes a `Launch` into the pod's environment; the worker answers with a `Report` over HTTP while
it lives and with an `ExitReason` as its termination message when it dies. Both sides import this package and
nothing else of each other, so a field can be added in one place and both test suites see it. The JSON Schemas
under `docs/schemas/` are generated from it and compared in the tests.

All byte counts are integers. Wire names are camelCase, as everywhere in Kubernetes.
"""

from __future__ import annotations

from plimsoll_worker.launch.capabilities import (
    CAPABILITIES,
    Capabilities,
)
from plimsoll_worker.launch.ending import (
    TERMINATION_MESSAGE_BYTES,
    TERMINATION_MESSAGE_PATH,
    ExitCode,
    ExitReason,
)
from plimsoll_worker.launch.memory import (
    MeasuredMemory,
    MemoryCategory,
    PredictedMemory,
)
from plimsoll_worker.launch.precision import (
    GGUF,
    GGUF_BLOCKS,
    INT4_GROUP,
    BlockForm,
    Device,
    Precision,
    WeightsScheme,
)
from plimsoll_worker.launch.report import (
    DeviceReport,
    LinkReport,
    Report,
    StartupStage,
    StartupTime,
)
from plimsoll_worker.launch.request import (
    ADMIN_PORT,
    LAUNCH_ENV,
    RENDEZVOUS_SECONDS,
    SERVING_PORT,
    STAGE_PORT,
    HubSource,
    Launch,
    LaunchError,
    LayerRange,
    Rendezvous,
    StageAddress,
    graph_sizes,
    prompt_graph_sizes,
)
from plimsoll_worker.launch.wire import (
    ENGINE_VERSION,
    LAUNCH_VERSION,
    Bytes,
    Wire,
)

__all__ = [
    "ADMIN_PORT",
    "CAPABILITIES",
    "ENGINE_VERSION",
    "GGUF",
    "GGUF_BLOCKS",
    "INT4_GROUP",
    "LAUNCH_ENV",
    "LAUNCH_VERSION",
    "RENDEZVOUS_SECONDS",
    "SERVING_PORT",
    "STAGE_PORT",
    "TERMINATION_MESSAGE_BYTES",
    "TERMINATION_MESSAGE_PATH",
    "BlockForm",
    "Bytes",
    "Capabilities",
    "Device",
    "DeviceReport",
    "ExitCode",
    "ExitReason",
    "HubSource",
    "Launch",
    "LaunchError",
    "LayerRange",
    "LinkReport",
    "MeasuredMemory",
    "MemoryCategory",
    "Precision",
    "PredictedMemory",
    "Rendezvous",
    "Report",
    "StageAddress",
    "StartupStage",
    "StartupTime",
    "WeightsScheme",
    "Wire",
    "graph_sizes",
    "prompt_graph_sizes",
]
