"""What the HTTP routes stand on: the state of the worker, and requests turned into generations.

The server listens from the first second, long before there is a model, so that probes get an answer instead
of a refused connection; until then there is no `Service`, only a `Lobby` without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from plimsoll_worker.loading.tokenizer import Tokenizer
from plimsoll_worker.server.engine_link import EngineLink
from plimsoll_worker.server.errors import ApiError, unavailable
from plimsoll_worker.server.generation import Generation
from plimsoll_worker.server.messages import Opened, Subject
from plimsoll_worker.server.metrics import Metrics
from plimsoll_worker.server.prompts import Ask, Prompts
from plimsoll_worker.server.protocol import ChatRequest, CompletionRequest, GenerationRequest
from plimsoll_worker.server.tool_families import Calling


class State(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """It answers, but clients should find another one."""
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model that answers."""

    name: str
    engine: EngineLink
    opened: Opened
    opened_at: int
    """Seconds since 1970."""
    tokenizer: Tokenizer
    prompts: Prompts
    metrics: Metrics

    async def generate_chat(self, request: ChatRequest) -> Generation:
        """Raises ApiError."""
        form = await self.prompts.form(request)
        return self._generate(request, await self.prompts.of_chat(request, form), form.calling)

    async def generate_completion(self, request: CompletionRequest) -> Generation:
        """Raises ApiError."""
        return self._generate(request, await self.prompts.of_completion(request))

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 unless `name` is served here."""
        if name != self.name:
            raise ApiError(
                404,
                f"the model {name!r} is not served here; this worker serves {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def _generate(
        self, request: GenerationRequest, asks: list[Ask], calling: Calling | None = None
    ) -> Generation:
        return Generation(
            self.engine,
            self.tokenizer,
            self.metrics,
            asks=asks,
            most=self.opened.limits.sequences,
            stop=request.stop or [],
            priority=request.priority or 0,
            cache_salt=request.cache_salt or "",
            calling=calling,
        )


@dataclass(slots=True)
class Lobby:
    """What is there before a model is, and stays: the state, and the service once it is open. A further stage
    of a replica is ready without one."""

    api_key: str | None
    engine: EngineLink
    state: State = State.STARTING
    opened: Service | None = field(default=None)

    @property
    def answers(self) -> bool:
        return self.state in (State.READY, State.LEAVING)

    @property
    def leaves(self) -> bool:
        return self.state in (State.LEAVING, State.DRAINING)

    async def service(self) -> Service:
        """The service while it takes requests. Raises ApiError 503."""
        if self.opened is None:
            raise await self.starting()
        if not self.answers:
            raise unavailable("the worker is shutting down; another replica will answer", "draining")
        return self.opened

    async def starting(self) -> ApiError:
        """503 with how far the start is, 404 on a further stage."""
        if self.opened is None and self.state is State.READY:
            return ApiError(404, "this is a further stage of a replica; its first one takes requests")
        return unavailable(await self.engine.ask(Subject.PROGRESS), "starting")
