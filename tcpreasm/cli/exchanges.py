"""Which response answers which request: the messages of both directions of a connection, brought together.

Lives here: queues of messages that wait for their counterpart. Where messages begin and end is found in messages; what becomes of an
exchange is for whoever is told of it. Called some times a message.

Responses come in the order of the requests (RFC 9112 9.3.2), so as long as nothing is missing the first request that waits and the
first response that waits belong together, whichever comes here first. Where messages may be missing (a gap, bytes that are no HTTP,
a start that was not captured), counting ends and capture times decide; not the order in which messages come here, for what lies behind
a gap waits for it. A client asks anew when it has been answered, so a request that was sent after a response begins a new round.
Of a round, what lies behind everything that is missing is paired from its end: where it has one request and one response, that
leaves no choice; any other one makes a guess, and is marked as one. The rest of a message whose head is lost is a message here. A
round is looked at when the responses are known up to the next one, or at the end of the streams. Counting goes on behind it, so that a
lost message puts nothing out of step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from ..flow import ConnectionKey
from .messages import Message

__all__ = ["Dialogue", "Exchange", "Half", "Watcher"]

# What waits for its counterpart: behind a gap that is waited for two minutes a busy connection has many. More is given up.
_MAX_WAITING = 16_384  # messages of one direction
_MAX_HEAD_BYTES = 16 << 20  # of heads, both directions together
_MAX_INTERIM = 16  # responses before the one that counts; the first ones are kept

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and its response, either of which may be missing."""

    request: Message | None = None
    response: Message | None = None
    interim: list[Message] = field(default_factory=list)
    """Responses with a status of 1xx that came before it."""
    guessed: bool = False
    """Messages beside these two are missing in the capture, and others could belong together."""

    @property
    def seen_ns(self) -> int:
        """When it began, as far as it was captured."""
        return self.answer_ns if self.request is None else self.request.seen_ns

    @property
    def waited_ns(self) -> int | None:
        """From the request's first byte to that of the response."""
        return None if self.request is None or self.response is None else self.response.seen_ns - self.request.seen_ns

    @property
    def duration_ns(self) -> int | None:
        """From the request's first byte to the last one of the response."""
        if self.request is None or self.response is None or self.response.end_ns is None:
            return None
        return self.response.end_ns - self.request.seen_ns

    @property
    def answer_ns(self) -> int:
        """When the first thing came that the server said."""
        first = self.interim[0] if self.interim else self.response
        assert first is not None
        return first.seen_ns

    @property
    def is_over(self) -> bool:
        """Nothing of it comes any more."""
        return all(message is None or message.end_ns is not None for message in (self.request, self.response))


class _Queue(deque[T | None]):
    """Messages in the order of their stream that wait for their counterpart. None: others may be missing here."""

    def __init__(self) -> None:
        super().__init__()
        self.is_seen = False
        """There is a stream."""
        self.is_over = False
        """It has ended."""
        self.known_ns = 0
        """Capture time up to which everything has come here."""

    @property
    def comes(self) -> bool:
        """More may come; nobody waits for a stream that is not there."""
        return self.is_seen and not self.is_over

    @property
    def is_certain(self) -> bool:
        """Nothing is missing in front of what waits."""
        return not self or self[0] is not None

    def note_lost(self) -> None:
        """Some may be missing here."""
        if not self or self[-1] is not None:
            self.append(None)

    def add_rest(self, item: T) -> None:
        """One of which there is but a part that tells nothing."""
        self.note_lost()
        self.append(item)
        self.note_lost()

    def take_while(self, belongs: Callable[[T], bool]) -> list[T | None]:
        """Those in front. What is missing behind the last one stays as well: nobody knows which round it belongs to."""
        taken: list[T | None] = []
        while self and ((item := self[0]) is None or belongs(item)):
            taken.append(item)
            self.popleft()
        if taken and taken[-1] is None:
            self.appendleft(None)
        return taken

    def take_all(self) -> list[T | None]:
        """All of them."""
        taken = [*self]
        self.clear()
        return taken


class _Pairing:
    """The requests of one direction and the responses of the other one. Tells of each exchange when it is over."""

    def __init__(self, told: Callable[[Exchange], None]) -> None:
        self._told = told
        self.requests: _Queue[Message] = _Queue()
        self.responses: _Queue[Exchange] = _Queue()
        self._interim: list[Message] = []  # whose response has not come
        self._head_bytes = 0  # of what waits
        self._open: dict[Message, Exchange] = {}  # paired; by each message whose end has not come

    def request(self, message: Message) -> None:
        """A request has begun."""
        self._head_bytes += message.head_bytes
        self.requests.append(message)
        self.requests.known_ns = message.seen_ns
        self.pair()

    def response(self, message: Message) -> bytes | None:
        """A response has begun. Gives the method of its request, if it is known or likely."""
        self.responses.known_ns = message.seen_ns
        if message.is_interim:
            if len(self._interim) < _MAX_INTERIM:
                self._interim.append(message)
            return None
        self._head_bytes += message.head_bytes
        exchange = Exchange(response=message, interim=self._interim)
        self._interim = []
        self.responses.append(exchange)
        self.pair()
        request = exchange.request
        if request is None:
            request = next((each for each in reversed(self.requests) if each is not None and each.seen_ns <= message.seen_ns), None)
        return None if request is None else request.method

    def ended(self, message: Message) -> None:
        """A message is over."""
        exchange = self._open.pop(message, None)
        if exchange is not None and exchange.is_over:
            self._told(exchange)

    def request_rest(self, seen_ns: int) -> None:
        """Bytes of requests, seen then, of which nothing else is there."""
        self.requests.add_rest(Message(seen_ns))
        self.requests.known_ns = seen_ns
        self.pair()

    def responses_lost(self) -> None:
        """Some may be missing here."""
        self._end_interim()
        self.responses.note_lost()

    def response_rest(self, seen_ns: int) -> None:
        """Bytes of responses, seen then, of which nothing else is there."""
        self._end_interim()
        self.responses.add_rest(Exchange(response=Message(seen_ns)))
        self.responses.known_ns = seen_ns
        self.pair()

    def responses_over(self) -> None:
        """The server's stream has ended."""
        self._end_interim()
        self.responses.is_over = True

    def _end_interim(self) -> None:
        """The response behind them is missing."""
        if self._interim:
            self.responses.append(Exchange(interim=self._interim))
            self._interim = []

    def pair(self) -> None:
        """Whatever can be paired now."""
        requests, responses = self.requests, self.responses
        while requests or responses:
            if requests.is_certain and responses.is_certain:
                if requests and responses:
                    request, exchange = requests.popleft(), responses.popleft()
                    assert request is not None
                    assert exchange is not None
                    self._settle(request, exchange, exchange.answer_ns < request.seen_ns)
                    continue
                if requests and self._unanswered():
                    self._settle_round(requests.take_all(), [])
                elif responses and not requests.comes:
                    self._settle_round([], responses.take_all())
                break
            if not self._pair_round():
                break
        if max(len(requests), len(responses)) > _MAX_WAITING or self._head_bytes > _MAX_HEAD_BYTES:
            self._settle_round(requests.take_all(), responses.take_all())
            requests.note_lost()
            responses.note_lost()

    def _unanswered(self) -> bool:
        """No response comes any more. As long as there is no stream of the server, it may still begin."""
        return self.responses.is_over or (not self.responses.is_seen and self.requests.is_over)

    def _pair_round(self) -> bool:
        """The first round, in which something is missing. False: its end is not known yet."""
        requests, responses = self.requests, self.responses
        first = next(filter(None, responses), None)
        if first is not None:
            answered_ns = first.answer_ns
            following = next((each for each in requests if each is not None and each.seen_ns > answered_ns), None)
            if following is not None:
                end_ns = following.seen_ns
                if responses.comes and responses.known_ns < end_ns:
                    return False
                self._settle_round(
                    requests.take_while(lambda request: request is not following),
                    responses.take_while(lambda exchange: exchange.answer_ns < end_ns),
                )
                return True
        waits = (any(responses) and requests.comes) or (any(requests) and not self._unanswered())
        if waits or not (any(requests) or any(responses)):
            return False
        self._settle_round(requests.take_all(), responses.take_all())
        return True

    def _settle_round(self, requests: list[Message | None], responses: list[Exchange | None]) -> None:
        """All of a round: from its end as far as nothing is missing, the others alone."""
        asked, answered = [*filter(None, requests)], [*filter(None, responses)]
        is_single = len(asked) == len(answered) == 1
        is_certain = is_single and any(requests[at] is not None and responses[at] is not None for at in (0, -1))
        count = 1 if is_single else min(_count_behind_lost(requests), _count_behind_lost(responses))
        pairs = []
        while count and asked[-1].seen_ns <= answered[-1].answer_ns:
            pairs.append((asked.pop(), answered.pop()))
            count -= 1
        for exchange in sorted([*map(Exchange, asked), *answered], key=lambda exchange: exchange.seen_ns):
            self._settle(exchange.request, exchange, False)
        for request, exchange in reversed(pairs):
            self._settle(request, exchange, not is_certain)

    def _settle(self, request: Message | None, exchange: Exchange, guessed: bool) -> None:
        self._head_bytes -= sum(message.head_bytes for message in (request, exchange.response) if message is not None)
        exchange.request = None if request is None or request.is_rest else request
        if exchange.response is not None and exchange.response.is_rest:
            exchange.response = None
        if exchange.request is None and exchange.response is None and not exchange.interim:
            return
        exchange.guessed = guessed and exchange.request is not None and exchange.response is not None
        for message in (exchange.request, exchange.response):
            if message is not None and message.end_ns is None:
                self._open[message] = exchange
        if exchange.is_over:
            self._told(exchange)


def _count_behind_lost(items: list[T | None]) -> int:
    """How many stand behind everything that is missing."""
    return next((count for count, item in enumerate(reversed(items)) if item is None), len(items))


class Watcher(Protocol):
    """Who is told what a connection carries. Keys are those of the direction that sent the message, or the request."""

    def begun(self, message: Message) -> None:
        """A head was read; the message may be given a `body` now."""

    def message(self, key: ConnectionKey, message: Message) -> None:
        """A message is over."""

    def exchange(self, client: ConnectionKey, exchange: Exchange) -> None:
        """An exchange is over."""


class Dialogue:
    """Both directions of a connection. Either one may be the client's, or even both."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self._pairings: dict[ConnectionKey, _Pairing] = {}  # by the key of the direction that asks
        self.tunnel = False
        """See `Listener.tunnel`."""

    def half(self, key: ConnectionKey) -> Half:
        """What the parser of this direction tells."""
        return Half(self, key, self._pairing(key), self._pairing(key.reverse()))

    def _pairing(self, client: ConnectionKey) -> _Pairing:
        if client not in self._pairings:
            self._pairings[client] = _Pairing(partial(self.watcher.exchange, client))
        return self._pairings[client]


class Half:
    """One direction: the `Listener` of its parser."""

    def __init__(self, dialogue: Dialogue, key: ConnectionKey, asking: _Pairing, answering: _Pairing) -> None:
        self._dialogue = dialogue
        self._key = key
        self._asking = asking
        self._answering = answering
        asking.requests.is_seen = True
        answering.responses.is_seen = True

    @property
    def tunnel(self) -> bool:
        """The other direction's too."""
        return self._dialogue.tunnel

    @tunnel.setter
    def tunnel(self, tunnel: bool) -> None:
        self._dialogue.tunnel = tunnel

    def begun(self, message: Message) -> bytes | None:
        """See `Listener.begun`."""
        self._dialogue.watcher.begun(message)
        if message.method is None:
            return self._answering.response(message)
        self._asking.request(message)
        return None

    def done(self, message: Message) -> None:
        """See `Listener.done`."""
        self._dialogue.watcher.message(self._key, message)
        (self._answering if message.method is None else self._asking).ended(message)

    def lost(self) -> None:
        """See `Listener.lost`."""
        self._asking.requests.note_lost()
        self._answering.responses_lost()

    def rest(self, seen_ns: int) -> None:
        """See `Listener.rest`."""
        self._asking.request_rest(seen_ns)
        self._answering.response_rest(seen_ns)

    def over(self) -> None:
        """The end of the stream; its messages are done."""
        self._asking.requests.is_over = True
        self._asking.pair()
        self._answering.responses_over()
        self._answering.pair()
