"""Room for answers that run or wait, and who gets it when there is not enough for all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sophserve.api.http.deadlines import NOW
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import Record, current_record
from sophserve.engine.sequence import Sequence
from sophserve.errors import RequestError


class Place:
    """What one request takes up. Each answer's room is free once the engine is done with it, read or not.

    deadline: what ends the request. given_up: whether it had to make room for another client's.
    """

    def __init__(self, places: Places, record: Record, answers: int) -> None:
        self.client = record.client
        self.answers = answers
        self.deadline: asyncio.Timeout | None = None
        self.given_up = False
        self.limits = ExitStack()
        self._places = places
        self._record = record
        self._sequences: list[Sequence] = []

    @property
    def begun(self) -> bool:
        """Whether the client has seen something of its answer."""
        return self._record.first_output is not None or self._record.stream is not None

    @property
    def unread_bytes(self) -> int:
        """About what its answers hold that the client has not taken."""
        if self._record.stream is None:  # whole answers wait until all of them is sent
            return sum(sequence.answer_bytes for sequence in self._sequences)
        return sum(sequence.stream.held for sequence in self._sequences)

    @property
    def generated_tokens(self) -> int:
        """Of all its answers."""
        return sum(len(sequence.request.output) for sequence in self._sequences)

    def begin_one(self, sequence: Sequence) -> None:
        self._sequences.append(sequence)

    def end_one(self, sequence: Sequence) -> None:
        self.free(1)

    def free(self, answers: int) -> None:
        """Give room back."""
        answers = min(answers, self.answers)
        self.answers -= answers
        self._places.used -= answers
        if not self.answers:
            self.limits.close()
            self._places.taken.pop(self, None)

    def give_up(self) -> None:
        """End the request at once."""
        self.given_up = True
        self.free(self.answers)
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(NOW)


class Places:
    """So many answers at once. When they are all taken, a client that has fewer gets one of the client that has most,
    whose newest request, if it still waits, is refused: nobody can fill the queue for others."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.taken: dict[Place, None] = {}  # oldest first

    @contextmanager
    def take(self, answers: int) -> Iterator[Place]:
        """Room for so many answers. Raises ApiError where there is none, RequestError where there never is."""
        if answers > self.capacity:
            most = self.capacity
            raise RequestError(
                f"the request asks for {answers} answers at once (prompts times n); at most {most} are possible"
            )
        record = current_record.get()
        while self.used + answers > self.capacity:
            if not self._make_room(record.client, answers):
                raise self._full()
        place = Place(self, record, answers)
        if record.account:
            place.limits.enter_context(record.account.request())
        self.used += answers
        self.taken[place] = None
        record.answers = place
        try:
            yield place
        finally:
            place.free(answers)

    def refusal(self) -> ApiError:
        """What a request hears that gave up its room."""
        return self._full()

    def _make_room(self, client: str, answers: int) -> bool:
        held: Counter[str] = Counter()
        for place in self.taken:
            held[place.client] += place.answers
        largest, most = held.most_common(1)[0] if held else (client, 0)
        if largest == client or held[client] + answers >= most:
            return False
        for place in reversed(self.taken):
            if place.client == largest and not place.begun:
                place.give_up()
                return True
        return False

    def _full(self) -> ApiError:
        return ApiError(
            429,
            f"{self.used} answers are running or queued already; try again later",
            code="queue_full",
            headers={"Retry-After": "1"},
        )
