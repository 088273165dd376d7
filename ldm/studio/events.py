"""News from the studio to all who listen, as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

_ROOM = 256  # events that wait for a slow listener; further previews are dropped, and then it is sent away
_HEARTBEAT = 15.0  # seconds: a comment, so that a lost connection is noticed


@dataclass(frozen=True)
class Event:
    """One piece of news. job: whose it is, or None for all; lossy: nothing is lost if it is not sent."""

    name: str
    data: Any
    job: str | None = None
    lossy: bool = False

    def encoded(self) -> bytes:
        """As the event stream has it (WHATWG HTML, 9.2.6)."""
        return f"event: {self.name}\ndata: {json.dumps(self.data, ensure_ascii=False)}\n\n".encode()


@dataclass(eq=False)
class _Listener:
    job: str | None
    queue: asyncio.Queue[Event | None] = field(default_factory=lambda: asyncio.Queue(_ROOM + 1))


class Hub:
    """Who listens, and what is told them. Belongs to one event loop."""

    def __init__(self) -> None:
        self.listeners: set[_Listener] = set()

    def tell(self, event: Event) -> None:
        """Send an event to all whom it concerns; never waits."""
        for listener in list(self.listeners):
            if listener.job not in (None, event.job):
                continue
            room = _ROOM - listener.queue.qsize()
            if event.lossy and room < _ROOM // 2:
                continue
            if room <= 0:  # it comes again, and is told all that there is
                self._send_away(listener)
            else:
                listener.queue.put_nowait(event)

    def close(self) -> None:
        """Send all listeners away: their streams end."""
        for listener in list(self.listeners):
            self._send_away(listener)

    def _send_away(self, listener: _Listener) -> None:
        self.listeners.discard(listener)
        while not listener.queue.empty():
            listener.queue.get_nowait()
        listener.queue.put_nowait(None)

    async def stream(
        self, first: Callable[[], Event], job: str | None = None, until: Callable[[Event], bool] | None = None
    ) -> AsyncIterator[bytes]:
        """Events from now on, after a `first` one that tells how things stand.

        Args:
            job: of this one alone. until: the event after which the stream ends.
        """
        listener = _Listener(job)
        self.listeners.add(listener)
        try:
            now = first()
            yield b"retry: 1000\n\n" + now.encoded()
            if until is not None and until(now):
                return
            while True:
                try:
                    event = await asyncio.wait_for(listener.queue.get(), _HEARTBEAT)
                except asyncio.TimeoutError:
                    yield b": still here\n\n"
                    continue
                if event is None:
                    return
                yield event.encoded()
                if until is not None and until(event):
                    return
        finally:
            self.listeners.discard(listener)
