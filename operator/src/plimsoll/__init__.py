"""Plimsoll: computes how deep each GPU may be loaded, then serves large language models on it."""

__version__ = "0.1.0"
