"""Answers under a grammar, through the engine's own scheduler, runner and threads: a small random model says
at random what SmolLM2's tokenizer and the grammar let it say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from llguidance import LLMatcher
from tests.unit.worker.decoding import paged
from tests.unit.worker.processes import wait_for
from tests.unit.worker.test_models import opened, saved

from plimsoll_worker.engine.block_pool import BlockPool
from plimsoll_worker.engine.engine import Engine
from plimsoll_worker.engine.guide import GrammarFailed, Grammars, Guide
from plimsoll_worker.engine.model_runner import ModelRunner
from plimsoll_worker.engine.scheduler import Scheduler
from plimsoll_worker.engine.sequence import FinishReason, SamplingParams, Sequence, TokenEvent
from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.models.decoder import Decoder

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def grammar(schema: object) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("small")
    saved("Llama", {"vocab_size": 49152, "eos_token_id": 2, "max_position_embeddings": 1024}, folder)
    return opened(folder)


@pytest.fixture(scope="module")
def grammars(model: Decoder, tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, vocabulary=model.config.vocab_size, eos=model.config.eos_token_ids)


@pytest.fixture(scope="module")
def runner(model: Decoder) -> ModelRunner:
    return paged(model, blocks=64)


class Listener:
    """Keeps what a sequence hears."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.events: list[TokenEvent] = []
        self._tokenizer = tokenizer

    @property
    def text(self) -> str:
        return self._tokenizer.decode([event.token for event in self.events if event.token is not None])

    @property
    def finish(self) -> FinishReason | None:
        return self.events[-1].finish


class Answers:
    """An engine and its sequences."""

    def __init__(
        self, runner: ModelRunner, grammars: Grammars, tokenizer: Tokenizer, *, ahead: int, blocks: int = 64
    ) -> None:
        self.scheduler = Scheduler(BlockPool(blocks, 16), max_sequences=4, max_batched_tokens=64)
        runner.steps_ahead = ahead
        self.engine = Engine(runner, self.scheduler, grammars=grammars)
        self._tokenizer = tokenizer
        self._eos = runner.model.config.eos_token_ids

    def ask(self, prompt: str, name: str = "a", **params: object) -> Listener:
        listener = Listener(self._tokenizer)
        fields = {"max_tokens": 48, "temperature": 0.0, "stop_token_ids": frozenset(self._eos), **params}
        self.engine.submit(
            Sequence(
                id=name,
                prompt=tuple(self._tokenizer.encode(prompt)),
                params=SamplingParams(**fields),  # type: ignore[arg-type]
                emit=listener.events.append,
            )
        )
        return listener


@pytest.fixture(params=[0, 1], ids=["read at once", "read late"])
def answers(
    request: pytest.FixtureRequest, runner: ModelRunner, grammars: Grammars, tokenizer: Tokenizer
) -> Iterator[Answers]:
    yield Answers(runner, grammars, tokenizer, ahead=request.param)
    runner.steps_ahead = 0


def test_an_answer_follows_its_grammar_and_ends_where_it_is_satisfied(answers: Answers) -> None:
    listeners = [
        answers.ask(
            "A person as JSON: " * index, f"g{index}", grammar=grammar(PERSON), logit_bias={index: 1.0}
        )
        for index in range(1, 7)
    ]
    answers.engine.settle()
    for listener in listeners:
        person = json.loads(listener.text)
        assert person.keys() == {"name", "age"}
        assert person["age"] <= 99
        assert listener.finish is FinishReason.STOP
    answers.scheduler.check_integrity()
    assert answers.scheduler.pool.used == 0


def test_others_answers_stay_what_they_are(answers: Answers) -> None:
    prompts = ["The capital of France is", "1 2 3 4 5 6 7"]
    alone = [answers.ask(prompt, prompt) for prompt in prompts]
    answers.engine.settle()
    beside = [answers.ask(prompt, f"again {prompt}") for prompt in prompts]
    guided = answers.ask("A person as JSON: ", grammar=grammar(PERSON))
    answers.engine.settle()
    assert [listener.text for listener in beside] == [listener.text for listener in alone]
    assert json.loads(guided.text)


def test_max_tokens_cuts_what_is_not_complete(answers: Answers) -> None:
    listener = answers.ask("A person as JSON: ", grammar=grammar(PERSON), max_tokens=3)
    answers.engine.settle()
    assert listener.finish is FinishReason.LENGTH
    assert len(listener.events) == 3
    assert listener.text.startswith('{"name"')


def test_an_answer_that_was_preempted_goes_on_in_its_grammar(
    runner: ModelRunner, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    three = {"type": "integer", "minimum": 100, "maximum": 999}
    many = {"type": "array", "items": three, "minItems": 9, "maxItems": 9}
    tight = Answers(runner, grammars, tokenizer, ahead=0, blocks=4)
    first = tight.ask("Numbers: ", "first", grammar=grammar(many), max_tokens=45)
    second = tight.ask("Some more numbers: ", "second", grammar=grammar(many), max_tokens=45)
    tight.engine.settle()
    assert tight.scheduler.preemptions > 0
    alone = Answers(runner, grammars, tokenizer, ahead=0)
    expected = [
        alone.ask(prompt, prompt, grammar=grammar(many), max_tokens=45)
        for prompt in ("Numbers: ", "Some more numbers: ")
    ]
    alone.engine.settle()
    assert [first.text, second.text] == [listener.text for listener in expected]
    assert len(json.loads(first.text)) == 9


DEAD_ENDS = {
    "nothing fits": '{"grammars": [{"lark_grammar": "start: a\\na: a \\"x\\""}]}',
    "not a grammar": "start: (",
    "too many ways": grammar(
        {
            "type": "object",
            "properties": {f"p{index}": {"type": "string"} for index in range(2000)},
            "required": ["p1999"],
        }
    ),
}


@pytest.mark.parametrize("dead", DEAD_ENDS.values(), ids=DEAD_ENDS.keys())
def test_a_grammar_without_a_way_on_ends_its_answer_alone(dead: str, answers: Answers) -> None:
    ended = answers.ask("A person: ", "ended", grammar=dead)
    lives = answers.ask("A person: ", "lives", grammar=grammar(PERSON))
    answers.engine.settle()
    assert ended.finish is FinishReason.DEAD_END
    assert json.loads(lives.text)
    assert answers.scheduler.pool.used == 0


def test_what_is_aborted_while_its_grammar_is_read_leaves_nothing(answers: Answers) -> None:
    listener = answers.ask("A person: ", "gone", grammar=grammar(PERSON))
    answers.engine.abort("gone")
    stays = answers.ask("A person: ", "stays", grammar=grammar(PERSON))
    answers.engine.settle()
    assert listener.finish is FinishReason.ABORTED
    assert json.loads(stays.text)
    assert answers.scheduler.pool.used == 0


def test_a_grammar_whose_answer_is_gone_holds_up_nobody(
    runner: ModelRunner, model: Decoder, tokenizer: Tokenizer
) -> None:
    compiled = []

    class Noting(Grammars):
        def guide(self, grammar: str) -> Guide:
            def note() -> LLMatcher:
                compiled.append(grammar)
                return self._matcher(grammar)

            return Guide(note)

    def hold() -> LLMatcher:
        assert go_on.wait(60)
        raise GrammarFailed("it held up the others")

    grammars = Noting(tokenizer, vocabulary=model.config.vocab_size, eos=model.config.eos_token_ids)
    answers, go_on = Answers(runner, grammars, tokenizer, ahead=0), threading.Event()
    held = grammars.begin(Guide(hold))
    gone = answers.ask("A person: ", "gone", grammar=grammar({"type": "boolean"}))
    stays = answers.ask("A person: ", "stays", grammar=grammar(PERSON))
    answers.engine.abort("gone")
    settling = threading.Thread(target=answers.engine.settle)
    settling.start()
    wait_for(lambda: bool(gone.events), 60, "it is aborted")
    go_on.set()
    settling.join(60)
    assert held.result() == [None]
    assert gone.finish is FinishReason.ABORTED
    assert json.loads(stays.text)
    assert compiled == [grammar(PERSON)]


def test_an_engine_that_waits_for_a_grammar_alone_sleeps_and_is_woken(answers: Answers) -> None:
    """Also when the sequence comes while it runs, and when it is told to end."""
    thread = threading.Thread(target=answers.engine.run)
    thread.start()
    listener = answers.ask("A person: ", grammar=grammar(PERSON))
    answers.engine.drain(60)
    thread.join(60)
    assert not thread.is_alive()
    assert json.loads(listener.text)


def test_a_tokenizer_that_no_grammar_can_be_laid_over_fails_by_name(model: Decoder) -> None:
    import tokenizers

    words = Tokenizer(backend=tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
    guide = Grammars(words, vocabulary=1, eos=[0]).guide(grammar(PERSON))
    with pytest.raises(GrammarFailed, match="over this tokenizer"):
        guide.follow()
