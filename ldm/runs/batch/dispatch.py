"""Which worker makes which rows: what all engines have in common.

A worker has a few chunks in hand, so that it reads some while it samples others. The rows that a worker had in hand
when it died are suspects: each is made once more, by a worker that has nothing else in hand. One that kills that, too,
is set aside.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator

from ldm.errors import UserError
from ldm.runs.batch.outcome import Outcome, failure
from ldm.runs.batch.rows import Chunk, Row

DEPTH = 4
"""Chunks that a worker has in hand: one being read, one being sampled, one being written, and one on its way."""

_MOVES = 6  # machines that may go with a row in hand before it is a suspect


class Dispatch:
    """Hands out chunks.

    Args:
        chunks: taken as they are wanted. report: told of each row once.
    """

    def __init__(self, chunks: Iterator[Chunk], report: Callable[[Outcome], None]):
        self.chunks, self.report = chunks, report
        self.back: deque[Chunk] = deque()  # of workers that are gone through no fault of theirs
        self.suspects: deque[Row] = deque()
        self.deaths: dict[str, int] = {}
        self.moves: dict[str, int] = {}
        self.hands: dict[Hashable, list[dict[str, Row]]] = {}
        self.head: Chunk | None = None

    def next(self, worker: Hashable) -> Chunk | None:
        """What a worker is to make next; None for nothing now."""
        hand = self.hands.setdefault(worker, [])
        if len(hand) >= DEPTH or any(row in self.deaths for chunk in hand for row in chunk):
            return None
        if self.suspects and not hand:
            chunk: Chunk = (self.suspects.popleft(),)
        elif self.back:
            chunk = self.back.popleft()
        elif self._fresh():
            assert self.head is not None
            chunk, self.head = self.head, None
        else:
            return None
        hand.append({row.name: row for row in chunk})
        return chunk

    def done(self, worker: Hashable, outcome: Outcome) -> None:
        """A worker tells what has become of a row."""
        hand = self.hands.get(worker, [])
        for chunk in hand:
            if chunk.pop(outcome.name, None) is not None:
                break
        self.hands[worker] = [chunk for chunk in hand if chunk]
        self.report(outcome)

    def lost(self, worker: Hashable, reason: str, blame: bool = True) -> None:
        """A worker is gone.

        Args:
            reason: of its death. blame: a row of it may be the cause; not where its machine went, for example.
        """
        for chunk in self.hands.pop(worker, []):
            for name in chunk:
                self.moves[name] = self.moves.get(name, 0) + 1
            if not blame and all(self.moves[name] <= _MOVES for name in chunk):
                self.back.append(tuple(chunk.values()))
                continue
            for name, row in chunk.items():
                self.deaths[name] = self.deaths.get(name, 0) + 1
                if self.deaths[name] < 2:
                    self.suspects.append(row)
                else:
                    mend = "is it too large for the memory? (`retry_failed` tries it again)"
                    self.report(failure(row, UserError(f"it killed two workers ({reason}): {mend}"), set_aside=True))

    @property
    def waiting(self) -> bool:
        """Whether there is something that a worker with empty hands could do."""
        return bool(self.suspects or self.back) or self._fresh()

    @property
    def over(self) -> bool:
        """Whether everything has been done."""
        return not any(self.hands.values()) and not self.waiting

    def abandon(self, error: UserError) -> None:
        """Nobody is left to make the rest."""
        for hand in self.hands.values():
            self.back.extend(tuple(chunk.values()) for chunk in hand)
        self.hands.clear()
        self.back.extend((row,) for row in self.suspects)
        self.suspects.clear()
        while self.back or self._fresh():
            chunk = self.back.popleft() if self.back else self.head or ()
            self.head = self.head if self.back else None
            for row in chunk:
                self.report(failure(row, error))

    def _fresh(self) -> bool:
        if self.head is None:
            self.head = next(self.chunks, None)
        return self.head is not None
