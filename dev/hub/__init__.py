"""A small hub on this machine, so that nothing here needs the internet: it answers what `huggingface_hub`
asks.

Its repositories are real folders, or header-only: config.json and safetensors shards whose tensor data are
zeros that nobody stored, so that a model of 405 billion parameters can be inspected and planned from
kilobytes.

    server = serve([well_known("meta-llama/Llama-3.1-8B-Instruct")])
    HF_ENDPOINT=server.url plimsoll estimate hf://meta-llama/Llama-3.1-8B-Instruct
"""

from __future__ import annotations

from dev.hub.repository import Access, Repository, repositories_in
from dev.hub.server import HubServer, serve
from dev.hub.smollm2 import smollm2_folder
from dev.hub.well_known import WELL_KNOWN, well_known

__all__ = [
    "WELL_KNOWN",
    "Access",
    "HubServer",
    "Repository",
    "repositories_in",
    "serve",
    "smollm2_folder",
    "well_known",
]
