"""Generate for all requests in one thread. Each model answers one at a time, in the order of arrival."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import product

from niels_gpt.generation.generate import Generator, Token
from niels_gpt.serving.errors import ApiError, log_fault
from niels_gpt.serving.requests import ApiRequest, choose_samplings

Event = tuple[int, Token] | ApiError | None  # a token of an answer, by its number; an error; or the end


@dataclass(eq=False)
class Job:
    """A request to answer. Create it in the event loop that reads its events."""

    request: ApiRequest
    generator: Generator
    deadline: float  # of time.monotonic()
    prompt_tokens: int = 0
    ended: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def send(self, event: Event) -> None:
        """Pass an event on; after an error or the end there is no other."""
        if not self.ended:
            self.ended = not isinstance(event, tuple)
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def read(self) -> AsyncIterator[tuple[int, Token]]:
        """Yield the tokens, and raise the error. Whoever stops reading ends the job."""
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, ApiError):
                    raise event
                yield event
        finally:
            self.ended = True


class Worker(threading.Thread):
    """The thread. Models take turns after each token, so that two of them stream side by side."""

    def __init__(self, queue: int) -> None:
        """At most `queue` jobs wait."""
        super().__init__(name="generation", daemon=True)
        self._queue, self._waiting, self._closed = queue, list[Job](), False
        self._changed = threading.Condition()

    def count_waiting(self) -> int:
        """Return the number of jobs that wait."""
        return sum(not job.ended for job in self._waiting)

    def submit(self, job: Job) -> None:
        """Add a job. ApiError if too many wait, or the server stops."""
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is stopping")
            if self.count_waiting() >= self._queue:
                wait = "1 request waits" if self._queue == 1 else f"{self._queue} requests wait"
                raise ApiError(429, f"{wait} already; try again", code="queue_full", retry_after="1")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the answers after their next token, refuse those that wait, and wait for the thread."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.send(ApiError(503, "the server is stopping"))
            self._waiting = []
            self._changed.notify()
        self.join()

    def run(self) -> None:
        """Generate until it is closed."""
        running: dict[Generator, Iterator[None]] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: running or self._waiting or self._closed)
                self._waiting = [job for job in self._waiting if not job.ended]
                for job in [*self._waiting]:
                    if job.generator not in running:
                        self._waiting.remove(job)
                        running[job.generator] = self._generate(job)
            if self._closed and not running:
                return
            for generator, tokens in [*running.items()]:
                if next(tokens, StopIteration) is StopIteration:
                    del running[generator]

    def _generate(self, job: Job) -> Iterator[None]:
        """Send the tokens of a job, and pause after each."""
        try:
            prompts = job.request.encode(job.generator.tokenizer)  # here, as a long text takes its time
            job.prompt_tokens = sum(map(len, prompts))
            for n, (prompt, sampling) in enumerate(product(prompts, choose_samplings(job.request))):
                for token in job.generator.stream(prompt, sampling):
                    if late := self._closed or time.monotonic() > job.deadline:
                        token = token._replace(finish_reason=token.finish_reason or "length")
                    job.send((n, token))
                    yield
                    if job.ended:
                        return
                    if late:
                        break
            job.send(None)
        except Exception as error:
            job.send(log_fault(error))
