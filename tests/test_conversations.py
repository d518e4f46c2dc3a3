"""Both directions together: who is client, one handler for both sides, handshake, ends, acknowledged holes, ports used again.

What both cores do in lock-step with random traffic is in test_parity; real captures against what the applications wrote are below.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import json
import random
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorder import ACK, BACK, ENDS, FIN, NS, RST, SYN, Ends, frame, pcap, segment, to_ns

CLIENT, SERVER = "client", "server"


class Talk:
    """Two hosts and their sequence numbers: `say` sends the next segment of one side."""

    def __init__(self, package: ModuleType, assembler: Any, ends: Ends = ENDS, isns: tuple[int, int] = (1000, 5000)) -> None:
        self.package = package
        self.assembler = assembler
        self.ends = {CLIENT: ends, SERVER: (ends[2], ends[3], ends[0], ends[1])}
        self.seq = {CLIENT: isns[0], SERVER: isns[1]}

    def send(self, who: str, seq: int, payload: bytes = b"", *, at: float = 0, **flags: Any) -> None:
        tcp = segment(self.package, seq, payload, ends=self.ends[who], **flags)
        ends = self.ends[who]
        self.assembler.assemble(self.package.Flow(ends[0], ends[2]), tcp, timestamp_ns=to_ns(at))

    def say(self, who: str, payload: bytes = b"", *, at: float = 0, **flags: Any) -> None:
        """In order, and with an acknowledgement of all that the other one has sent, unless it is a SYN."""
        seq = self.seq[who]
        self.seq[who] = seq + len(payload) + bool(flags.get("syn")) + bool(flags.get("fin"))
        if not flags.get("syn") and "ack" not in flags:
            flags["ack"] = self.seq[SERVER if who == CLIENT else CLIENT]
        self.send(who, seq, payload, at=at, **flags)

    def miss(self, who: str, size: int) -> None:
        """So many bytes were not captured."""
        self.seq[who] += size

    def shake(self, at: float = 0) -> None:
        self.say(CLIENT, syn=True, at=at)
        self.say(SERVER, syn=True, ack=self.seq[CLIENT], at=at + 0.01)
        self.say(CLIENT, at=at + 0.02)


class Handler:
    """Writes every call down in the pool's list: (role, what)."""

    def __init__(self, log: list[Any], conversation: Any) -> None:
        self.log = log
        self.conversation = conversation
        log.append(("new", conversation.client.role, str(conversation.key)))

    def reassembled(self, side: Any, pieces: list[Any]) -> None:
        assert side.conversation is self.conversation
        self.log.append((side.role, b"".join(map(bytes, pieces)), sum(piece.skip for piece in pieces)))

    def side_complete(self, side: Any) -> None:
        self.log.append((side.role, "complete"))

    def conversation_complete(self) -> None:
        assert self.conversation.complete
        self.log.append(("over", self.conversation.state))


class Talks:
    """A pool with such handlers, an Assembler, and one Talk."""

    def __init__(self, package: ModuleType, **options: Any) -> None:
        self.package = package
        self.log: list[Any] = []
        self.handlers: list[Handler] = []
        self.pool = package.ConversationPool(self.new)
        self.assembler = package.Assembler(self.pool, package.AssemblerOptions(**options))
        self.talk = Talk(package, self.assembler)

    def new(self, conversation: Any) -> Handler:
        self.handlers.append(Handler(self.log, conversation))
        return self.handlers[-1]

    def take(self) -> list[Any]:
        log = self.log[:]
        self.log.clear()
        stats = self.assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
        return log

    @property
    def conversation(self) -> Any:
        """The newest one."""
        return self.handlers[-1].conversation


@pytest.fixture
def talks(tcpreasm: ModuleType) -> Talks:
    return Talks(tcpreasm)


# -- from the handshake to the end --------------------------------------------------------------------------------------


def test_a_whole_conversation_in_the_order_of_the_capture(talks: Talks) -> None:
    talk = talks.talk
    talk.shake()
    assert talks.take() == [("new", CLIENT, "10.0.0.1:1234->10.0.0.2:80"), (CLIENT, b"", 0), (SERVER, b"", 0)]
    for who, text in ((CLIENT, b"a"), (SERVER, b"b"), (SERVER, b"c"), (CLIENT, b"d")):
        talk.say(who, text, at=1)
    assert talks.take() == [(CLIENT, b"a", 0), (SERVER, b"b", 0), (SERVER, b"c", 0), (CLIENT, b"d", 0)]
    conversation = talks.conversation
    assert (conversation.state, conversation.closed_by, conversation.complete) == ("open", None, False)
    talk.say(SERVER, b"bye", fin=True, at=2)
    assert (conversation.state, conversation.closed_by, conversation.closed_how) == ("half-closed", SERVER, "fin")
    talk.say(CLIENT, b"last", at=3)
    talk.say(CLIENT, fin=True, at=4)
    assert talks.take() == [
        *((SERVER, b"bye", 0), (SERVER, "complete"), (CLIENT, b"last", 0), (CLIENT, b"", 0), (CLIENT, "complete")),
        ("over", "closed"),
    ]
    talk.say(SERVER, at=5)
    assert talks.take() == []
    assert (conversation.closed_by, conversation.closed_how, conversation.complete) == (SERVER, "fin", True)
    client, server = conversation.sides
    assert (client.packets, client.bytes, client.delivered, client.skipped) == (6, 6, 6, 0)
    assert (server.packets, server.bytes, server.delivered, server.skipped) == (5, 5, 5, 0)
    assert (client.acked, server.acked) == (talk.seq[SERVER], talk.seq[CLIENT])
    assert (client.first_seen_ns, client.last_seen_ns) == (0, 4 * NS)
    assert (conversation.first_seen_ns, conversation.last_seen_ns) == (0, 5 * NS)
    assert client.started
    assert client.ended
    assert len(talks.pool) == 0


def test_the_handshake_and_its_time(talks: Talks) -> None:
    talk = talks.talk
    talk.send(CLIENT, 1000, syn=True, at=1)
    conversation = talks.conversation
    assert (conversation.state, conversation.handshake, conversation.handshake_time) == ("opening", False, None)
    talk.send(CLIENT, 1000, syn=True, at=2)
    talk.send(SERVER, 5000, syn=True, ack=1001, at=2.5)
    talk.send(SERVER, 5000, syn=True, ack=1001, at=2.75)
    assert (conversation.handshake, conversation.handshake_time_ns) == (False, None)
    talk.send(CLIENT, 1001, ack=5001, at=3)
    talk.send(CLIENT, 1001, b"x", ack=5001, at=4)
    assert (conversation.syn_ns, conversation.syn_ack_ns, conversation.handshake_ack_ns) == (NS, to_ns(2.5), 3 * NS)
    assert (conversation.handshake, conversation.handshake_time, conversation.handshake_time_ns) == (True, 2.0, 2 * NS)
    assert not conversation.guessed


def test_the_acknowledgement_of_something_else_is_no_handshake(talks: Talks) -> None:
    talks.talk.send(CLIENT, 1000, syn=True)
    talks.talk.send(SERVER, 5000, syn=True, ack=1001)
    for ack in (5000, 4000, 5001 + (1 << 24) + 1):
        talks.talk.send(CLIENT, 1001, ack=ack)
        assert not talks.conversation.handshake
    talks.talk.send(CLIENT, 1001, b"x", ack=5001)
    assert talks.conversation.handshake


def test_what_the_server_acknowledges_is_no_handshake(tcpreasm: ModuleType) -> None:
    """Both sides have nearly the same numbers."""
    talks = Talks(tcpreasm)
    talks.talk.send(CLIENT, 5000, syn=True)
    talks.talk.send(SERVER, 5000, syn=True, ack=5001)
    talks.talk.send(SERVER, 5001, b"early", ack=5001)
    assert not talks.conversation.handshake


def test_no_time_where_the_acknowledgement_was_captured_first(talks: Talks) -> None:
    """The next one that acknowledges as much came later than the handshake's: no time is better than a wrong one."""
    talks.talk.send(CLIENT, 1000, syn=True, at=1)
    talks.talk.send(CLIENT, 1001, ack=5001, at=2)
    talks.talk.send(SERVER, 5000, syn=True, ack=1001, at=2)
    talks.talk.send(CLIENT, 1001, b"x", ack=5001, at=30)
    assert (talks.conversation.syn_ack_ns, talks.conversation.handshake_time) == (2 * NS, None)


def test_the_handshake_is_known_when_the_first_text_comes(tcpreasm: ModuleType) -> None:
    """State is committed before the handler is called: with the client's ACK on its first text, too."""
    known: list[Any] = []

    class Asks(Handler):
        def reassembled(self, side: Any, pieces: list[Any]) -> None:
            known.append((side.role, side.packets, side.delivered, self.conversation.handshake, self.conversation.guessed))

    pool = tcpreasm.ConversationPool(lambda conversation: Asks([], conversation))
    talk = Talk(tcpreasm, tcpreasm.Assembler(pool))
    talk.say(CLIENT, syn=True)
    talk.say(SERVER, syn=True, ack=1001)
    talk.say(CLIENT, b"text")
    assert known == [(CLIENT, 1, 0, False, False), (SERVER, 1, 0, False, False), (CLIENT, 2, 4, True, False)]


@pytest.mark.parametrize("frames", [False, True])
def test_sides_and_who_they_are(tcpreasm: ModuleType, frames: bool) -> None:
    """By segments and by frames in one batch."""
    seen: list[Any] = []
    pool = tcpreasm.ConversationPool(lambda conversation: seen.append(conversation) or Handler([], conversation))
    assembler = tcpreasm.Assembler(pool)
    if frames:
        data = [frame(1000, flags=SYN), frame(5000, flags=SYN | ACK, ends=BACK, ack=1001), frame(1001, b"xy", ack=5001)]
        offsets = [sum(map(len, data[:i])) for i in range(3)]
        assert assembler.assemble_batch(b"".join(data), offsets, list(map(len, data)), [1, 2, 3]) == 3
    else:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        talk.say(CLIENT, b"xy")
    (conversation,) = seen
    client, server = conversation.client, conversation.server
    assert conversation.sides == (client, server)
    assert (client.peer, server.peer) == (server, client)
    assert client.peer.peer is client
    assert client.conversation is server.conversation is conversation
    assert (client.role, server.role) == (CLIENT, SERVER)
    assert (str(client.key), str(server.key)) == ("10.0.0.1:1234->10.0.0.2:80", "10.0.0.2:80->10.0.0.1:1234")
    assert (str(client.net_flow.src), client.transport_flow.dst, server.transport_flow.dst) == ("10.0.0.1", 80, 1234)
    assert conversation.key == client.key
    assert client != server
    assert {client: 1}[conversation.client] == 1
    assert client.stream is None
    assert conversation.context is None
    conversation.context = {"anything": 1}
    assert repr(client) == "<client 10.0.0.1:1234->10.0.0.2:80>"
    assert repr(conversation) == "<conversation 10.0.0.1:1234->10.0.0.2:80, open>"
    assert (client.bytes, client.delivered) == (2, 2)
    assembler.close()
    assert conversation.client is client
    assert conversation.complete
    del client, server
    assert conversation.client is conversation.client
    assert conversation.server.role == SERVER


# -- who is client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("src", "dst", "client"), [(40000, 80, 40000), (80, 40000, 40000), (500, 22, 500), (5000, 6000, 6000)])
def test_without_a_syn_the_lower_port_is_the_server(tcpreasm: ModuleType, src: int, dst: int, client: int) -> None:
    talks = Talks(tcpreasm, start_wait_segments=1)
    talk = Talk(tcpreasm, talks.assembler, ("10.0.0.1", src, "10.0.0.2", dst))
    talk.say(CLIENT, b"x")
    assert talks.conversation.client.transport_flow.src == client
    assert talks.conversation.guessed


def test_of_equal_ports_who_was_seen_first_is_the_client(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm, start_wait_segments=1)
    talk = Talk(tcpreasm, talks.assembler, ("10.0.0.1", 179, "10.0.0.2", 179))
    talk.say(SERVER, b"x")
    assert str(talks.conversation.client.net_flow.src) == "10.0.0.2"


def test_a_late_syn_corrects_the_guess(tcpreasm: ModuleType) -> None:
    """A client with the lower port: its text comes first, then its SYN. The sides stay what they are and change their roles."""
    talks = Talks(tcpreasm, start_wait_segments=1)
    talk = Talk(tcpreasm, talks.assembler, ("10.0.0.1", 20, "10.0.0.2", 40000))
    talk.send(CLIENT, 1001, b"x", ack=5001)
    conversation = talks.conversation
    side = conversation.server
    assert (conversation.guessed, side.role, str(side.net_flow.src)) == (True, SERVER, "10.0.0.1")
    talk.send(CLIENT, 1000, syn=True)
    assert (conversation.guessed, side.role, conversation.client is side) == (False, CLIENT, True)


def test_a_syn_ack_alone_tells_who_is_client(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm)
    talk = Talk(tcpreasm, talks.assembler, ("10.0.0.1", 20, "10.0.0.2", 40000))
    talk.send(SERVER, 5000, syn=True, ack=1001)
    assert (talks.conversation.guessed, str(talks.conversation.client.net_flow.src)) == (False, "10.0.0.1")
    talk.send(CLIENT, 1000, syn=True)
    talk.send(CLIENT, 1001, b"x", ack=5001)
    assert len(talks.handlers) == 1
    assert talks.conversation.handshake


def test_of_a_simultaneous_open_the_first_one_is_the_client(talks: Talks) -> None:
    """RFC 9293 3.5, figure 7, as Linux does it: the second SYN is answered with a SYN-ACK."""
    talks.talk.send(CLIENT, 1000, syn=True, at=1)
    talks.talk.send(SERVER, 5000, syn=True, at=2)
    talks.talk.send(CLIENT, 1000, syn=True, ack=5001, at=3)
    talks.talk.send(SERVER, 5001, ack=1001, at=5)
    conversation = talks.conversation
    assert len(talks.handlers) == 1
    assert str(conversation.client.net_flow.src) == "10.0.0.1"
    assert (conversation.handshake, conversation.handshake_time) == (True, 3.0)


# -- resets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [CLIENT, SERVER])
def test_a_reset_of_one_side_ends_both(talks: Talks, who: str) -> None:
    other = SERVER if who == CLIENT else CLIENT
    talk = talks.talk
    talk.shake()
    talk.miss(other, 4)
    talk.say(other, b"held", ack=1)
    talks.take()
    talk.say(who, rst=True, ack=1)
    assert talks.take() == [(who, b"", 0), (who, "complete"), (other, b"held", 4), (other, "complete"), ("over", "reset")]
    conversation = talks.conversation
    assert (conversation.closed_by, conversation.closed_how, conversation.complete) == (who, "rst", True)
    ended = {side.role: side.ended for side in conversation.sides}
    assert ended == {who: True, other: False}
    talk.say(other, b"late")
    talk.say(who, b"late")
    assert talks.take() == []
    assert talks.assembler.stats.dropped["after_close"] == 8
    assert len(talks.pool) == 0


def test_a_reset_that_is_not_exact_ends_nothing(talks: Talks) -> None:
    talks.talk.shake()
    talks.talk.send(SERVER, 5002, rst=True, ack=1001)
    assert talks.conversation.state == "open"
    assert talks.assembler.stats.rst_ignored == 1


def test_a_plain_pool_knows_nothing_of_the_other_direction(tcpreasm: ModuleType) -> None:
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.BytesStream))
    talk = Talk(tcpreasm, assembler)
    talk.shake()
    talk.say(CLIENT, rst=True)
    assert len(assembler.pool) == 1
    talk.send(CLIENT, 1000, syn=True, at=100)
    talk.send(SERVER, 0, rst=True, ack=1001, at=100)
    assert assembler.stats.rst_ignored == 1


@pytest.mark.parametrize(("ack", "refused"), [(1001, True), (1000, False), (1002, False), (0, False)])
@pytest.mark.parametrize("open_on", ["syn", "data"])
def test_a_syn_that_is_refused(tcpreasm: ModuleType, ack: int, refused: bool, open_on: str) -> None:
    """RFC 9293 3.10.7.3: a RST with an ACK of exactly the SYN. The server never has a stream."""
    talks = Talks(tcpreasm, open_on=open_on)
    talks.talk.send(CLIENT, 1000, syn=True)
    talks.talk.send(SERVER, 0, rst=True, ack=ack, ack_flag=True, at=1)
    assert len(talks.pool) == (not refused)
    assert talks.assembler.stats.rst_ignored == (not refused)
    if open_on == "data":
        assert talks.take() == []
        return
    end = [(CLIENT, "complete"), ("over", "refused")] if refused else []
    assert talks.take()[2:] == end
    conversation = talks.conversation
    assert conversation.state == ("refused" if refused else "opening")
    assert (conversation.closed_by, conversation.closed_how) == ((SERVER, "rst") if refused else (None, None))
    assert conversation.server.packets == 1


def test_text_of_a_syn_that_is_refused(tcpreasm: ModuleType) -> None:
    """What answers a SYN with text acknowledges that, too (RFC 9293 3.10.7.1)."""
    talks = Talks(tcpreasm)
    talks.talk.send(CLIENT, 1000, b"text", syn=True)
    talks.talk.send(SERVER, 0, rst=True, ack=1005)
    assert talks.take()[1:] == [(CLIENT, b"text", 0), (CLIENT, "complete"), ("over", "refused")]


def test_held_text_of_a_syn_that_is_refused_opens_nothing(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm, open_on="data", syn_data="acked")
    talks.talk.send(CLIENT, 1000, b"text", syn=True)
    talks.talk.send(SERVER, 0, rst=True, ack=1005)
    assert talks.take() == []
    assert talks.assembler.stats.dropped["unconfirmed_syn"] == 4
    assert len(talks.pool) == 0


def test_who_has_been_answered_is_not_refused(talks: Talks) -> None:
    talks.talk.send(CLIENT, 1000, syn=True)
    talks.talk.send(CLIENT, 1001, b"x", ack=5001)  # only half of it is captured
    talks.talk.send(SERVER, 0, rst=True, ack=1002)
    assert talks.conversation.state == "open"
    assert talks.assembler.stats.rst_ignored == 1


# -- holes that were acknowledged ---------------------------------------------------------------------------------------


def with_hole(tcpreasm: ModuleType, **options: Any) -> Talks:
    """The client has sent "one", four bytes that were not captured, and "two" at second 10."""
    talks = Talks(tcpreasm, **options)
    talks.talk.shake()
    talks.talk.say(CLIENT, b"one")
    talks.talk.miss(CLIENT, 4)
    talks.talk.say(CLIENT, b"two", at=10)
    assert talks.take()[3:] == [(CLIENT, b"one", 0)]
    return talks


def expire(talks: Talks, at: float) -> list[Any]:
    """Time goes on to that second, in steps that are believed."""
    for second in [*range(0, int(at), 50), at]:
        talks.assembler.advance_clock(to_ns(second))
    talks.assembler.expire()
    return talks.take()


def test_a_hole_that_was_acknowledged_is_waited_for_a_second(tcpreasm: ModuleType) -> None:
    talks = with_hole(tcpreasm)
    talks.talk.send(SERVER, 5001, ack=1011, at=20)
    assert expire(talks, 21) == []
    assert expire(talks, 21.001) == [(CLIENT, b"two", 4)]
    assert talks.conversation.client.skipped == 4
    talks.talk.send(CLIENT, 1004, b"late", ack=5001, at=22)
    assert talks.take() == []


def test_what_comes_in_time_fills_it(tcpreasm: ModuleType) -> None:
    talks = with_hole(tcpreasm)
    talks.talk.send(SERVER, 5001, ack=1011, at=20)
    talks.talk.send(CLIENT, 1004, b"late", ack=5001, at=20.9)
    assert talks.take() == [(CLIENT, b"latetwo", 0)]
    assert expire(talks, 30) == []


@pytest.mark.parametrize("ack", [1004, 1007, 1003, 1004 + (1 << 28)])
def test_what_was_not_acknowledged_is_waited_for(tcpreasm: ModuleType, ack: int) -> None:
    """1004 to 1007 is missing: an acknowledgement of a part of it says nothing of the rest, nor does one of what cannot have been sent."""
    talks = with_hole(tcpreasm)
    talks.talk.send(SERVER, 5001, ack=ack, at=20)
    assert expire(talks, 100) == []
    assert expire(talks, 131) == [(CLIENT, b"two", 4)]


def test_it_is_given_up_only_as_far_as_it_was_acknowledged(tcpreasm: ModuleType) -> None:
    talks = with_hole(tcpreasm)
    talks.talk.miss(CLIENT, 2)
    talks.talk.say(CLIENT, b"three", at=11)
    talks.talk.send(SERVER, 5001, ack=1011, at=20)
    talks.talk.send(SERVER, 5001, ack=1018, at=20.5)
    assert expire(talks, 21.25) == [(CLIENT, b"two", 4)]  # the second hole has its own second
    assert expire(talks, 22) == []
    assert expire(talks, 22.5) == [(CLIENT, b"three", 2)]


def test_an_acknowledgement_before_the_data(tcpreasm: ModuleType) -> None:
    """As a capture from several queues shows it: the hole is known only with what lies behind it."""
    talks = Talks(tcpreasm)
    talks.talk.shake()
    talks.talk.send(SERVER, 5001, ack=1011, at=20)
    talks.talk.send(CLIENT, 1008, b"two", ack=5001, at=20.5)
    assert expire(talks, 21.5) == [("new", CLIENT, "10.0.0.1:1234->10.0.0.2:80"), (CLIENT, b"", 0), (SERVER, b"", 0)]
    assert expire(talks, 21.6) == [(CLIENT, b"two", 7)]


def test_a_side_that_only_acknowledges(tcpreasm: ModuleType) -> None:
    """It has no stream, for nothing of it was captured but acknowledgements."""
    talks = Talks(tcpreasm, start_wait_segments=1)
    talks.talk.send(SERVER, 5001, b"one", ack=1)
    talks.talk.send(SERVER, 5010, b"two", ack=1)
    talks.talk.send(CLIENT, 1, ack=5013, at=5)
    assert (talks.conversation.client.packets, talks.conversation.client.acked) == (1, 5013)
    talks.take()
    assert expire(talks, 6.1) == [(SERVER, b"two", 6)]


def test_at_once(tcpreasm: ModuleType) -> None:
    talks = with_hole(tcpreasm, acked_hole_timeout=0)
    talks.talk.send(SERVER, 5001, b"x", ack=1011, at=20)
    assert talks.take() == [(SERVER, b"x", 0), (CLIENT, b"two", 4)]


def test_at_once_the_data_behind_it(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm, acked_hole_timeout=0)
    talks.talk.shake()
    talks.talk.send(SERVER, 5001, ack=1011)
    talks.take()
    talks.talk.send(CLIENT, 1008, b"two", ack=5001)
    assert talks.take() == [(CLIENT, b"two", 7)]


@pytest.mark.parametrize("pairs", [False, True])
def test_without_it_nothing_changes(tcpreasm: ModuleType, pairs: bool) -> None:
    """None, and a plain pool, wait for hole_timeout."""
    if pairs:
        talks = with_hole(tcpreasm, acked_hole_timeout=None)
        talks.talk.send(SERVER, 5001, ack=1011, at=20)
        assert expire(talks, 130) == []
        assert expire(talks, 130.1) == [(CLIENT, b"two", 4)]
        return
    stream = tcpreasm.BytesStream()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(lambda net_flow, transport_flow: stream))
    talk = Talk(tcpreasm, assembler)
    talk.say(CLIENT, syn=True)
    talk.miss(CLIENT, 4)
    talk.say(CLIENT, b"two", at=10)
    talk.send(SERVER, 5001, ack=1008, at=10)
    assembler.advance_clock(60 * NS)
    assembler.expire()
    assert stream.data == b""


def test_a_whole_capture_gives_acknowledged_holes_up(tcpreasm: ModuleType) -> None:
    packets = [(0, frame(1000, flags=SYN)), (0, frame(5000, flags=SYN | ACK, ends=BACK, ack=1001)), (1, frame(1004, b"two", ack=5001))]
    packets += [(second * NS, frame(5001, ends=BACK, ack=1007)) for second in range(1, 5)]
    seen: list[Any] = []
    pool = tcpreasm.ConversationPool(lambda conversation: Handler(seen, conversation))
    assembler = tcpreasm.Assembler(pool)
    assembler.assemble_capture(pcap(packets), flush=False)
    assert seen[-1] == (CLIENT, b"two", 3)


# -- ports that are used again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("close", ["fin", "rst"])
@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_ports_that_are_used_again(talks: Talks, close: str, first: str) -> None:
    """Whichever SYN of the new conversation is captured first: its sides have each other for peers."""
    talk = talks.talk
    talk.shake()
    for who in (CLIENT, SERVER):
        if close == "fin" or who == CLIENT:
            talk.say(who, **{close: True})
    assert talks.conversation.complete
    for who in (CLIENT, SERVER) if first == CLIENT else (SERVER, CLIENT):
        if who == CLIENT:
            talk.send(CLIENT, 900_000, syn=True, at=1)
        else:
            talk.send(SERVER, 700_000, syn=True, ack=900_001, at=1.5)
    talk.send(CLIENT, 900_001, b"x", ack=700_001, at=2)
    talk.send(SERVER, 700_001, b"y", ack=900_002, at=2)
    old, new = (handler.conversation for handler in talks.handlers)
    assert (old.client.delivered, old.server.delivered) == (0, 0)
    assert (new.client.delivered, new.server.delivered, new.state) == (1, 1, "open")
    assert new.handshake
    assert new.handshake_time == 1.0
    assert new.client.peer.conversation is new


@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_ports_that_are_used_again_while_the_old_connection_is_open(talks: Talks, first: str) -> None:
    """Its end was not captured: the SYNs are remembered, and count once packets continue from them."""
    talk = talks.talk
    talk.shake()
    talk.say(CLIENT, b"old")
    talk.send(CLIENT, 900_000, syn=True, at=1)
    talk.send(SERVER, 700_000, syn=True, ack=900_001, at=1.5)
    assert len(talks.handlers) == 1
    for who in (CLIENT, SERVER) if first == CLIENT else (SERVER, CLIENT):
        if who == CLIENT:
            talk.send(CLIENT, 900_001, b"x", ack=700_001, at=2)
        else:
            talk.send(SERVER, 700_001, b"y", ack=900_001, at=2)
    old, new = (handler.conversation for handler in talks.handlers)
    assert (old.complete, old.state, old.client.delivered, old.server.acked) == (True, "open", 3, 1001)
    assert (new.complete, new.client.delivered, new.server.delivered) == (False, 1, 1)
    assert (new.syn_ns, new.syn_ack_ns, new.guessed) == (NS, to_ns(1.5), False)
    assert not new.handshake  # when it was acknowledged, nobody knew of it


def test_a_stream_of_old_is_no_side_of_the_new_conversation(talks: Talks) -> None:
    """Only the server's old packets were captured. The client's SYN begins a new conversation, and the SYN-ACK is its other side."""
    talk = talks.talk
    talk.send(SERVER, 5000, syn=True, ack=1001)
    talk.send(SERVER, 5001, b"old", ack=1001)
    talk.send(CLIENT, 800_000_000, syn=True, at=1)
    talk.send(SERVER, 700_000, syn=True, ack=800_000_001, at=1)
    talk.send(CLIENT, 800_000_001, b"x", ack=700_001, at=1)
    talk.send(SERVER, 700_001, b"y", ack=800_000_002, at=1)
    old, new = (handler.conversation for handler in talks.handlers)
    assert (old.server.delivered, old.client.packets, old.complete) == (3, 0, True)
    assert (new.client.delivered, new.server.delivered) == (1, 1)


def test_a_syn_after_the_end_of_the_other_side_begins_a_new_conversation(tcpreasm: ModuleType) -> None:
    """Nothing tells what the server's stream had to do with it: its own SYN was not captured."""
    talks = Talks(tcpreasm, start_wait_segments=1)
    talks.talk.send(SERVER, 5001, b"old", ack=1001, fin=True)
    talks.talk.send(CLIENT, 1000, syn=True, at=1)
    old, new = (handler.conversation for handler in talks.handlers)
    assert (old.server.delivered, old.client.packets, new.client.packets, new.server.packets) == (3, 0, 1, 0)


def test_a_side_that_was_there_is_not_taken_again(tcpreasm: ModuleType) -> None:
    """The client's connection was idle for too long and is gone. What it sends now is another conversation, as it is another stream."""
    talks = Talks(tcpreasm, start_wait_segments=1, idle_timeout=50)
    talks.talk.shake()
    for second in range(10, 70, 10):
        talks.talk.send(SERVER, 5001, ack=1001, at=second)
    talks.assembler.expire()
    talks.talk.send(CLIENT, 1001, b"x", ack=5001, at=70)
    old, new = (handler.conversation for handler in talks.handlers)
    assert (old.client.packets, old.client.delivered, old.complete) == (2, 0, False)
    assert (new.client.packets, new.client.delivered, new.complete) == (1, 1, False)


def test_a_forged_syn_ack_is_no_side(talks: Talks) -> None:
    """It acknowledges what the client has not sent. The right one finds the client all the same, once packets continue from it."""
    talk = talks.talk
    talk.send(CLIENT, 1000, syn=True)
    talk.send(SERVER, 7777, syn=True, ack=555_000_000)
    talk.send(SERVER, 5000, syn=True, ack=1001)
    talk.send(CLIENT, 1001, b"x", ack=5001)
    talk.send(SERVER, 5001, b"y", ack=1002)
    conversation = talks.handlers[0].conversation
    assert (conversation.client.delivered, conversation.server.delivered) == (1, 1)


def test_a_connection_with_itself(tcpreasm: ModuleType) -> None:
    """Both ends are one: there is one direction only."""
    ends = ("127.0.0.1", 5000, "127.0.0.1", 5000)
    talks = Talks(tcpreasm)
    talk = Talk(tcpreasm, talks.assembler, ends)
    talk.send(CLIENT, 1000, syn=True)
    talk.send(CLIENT, 1000, syn=True, ack=1001)
    talk.send(CLIENT, 1001, b"x", ack=1001)
    assert talks.conversation.client.delivered == 1
    talks.assembler.close()
    assert talks.take()[-1] == ("over", "open")


# -- when it is over ----------------------------------------------------------------------------------------------------


def test_one_side_alone_waits_for_the_other_until_it_is_forgotten(tcpreasm: ModuleType) -> None:
    """A FIN does not say that the other side will not come; that nothing came for closed_timeout does."""
    talks = Talks(tcpreasm, closed_timeout=10)
    talks.talk.say(CLIENT, syn=True)
    talks.talk.say(CLIENT, b"x", fin=True)
    assert talks.take()[-1] == (CLIENT, "complete")
    assert expire(talks, 10) == []
    assert expire(talks, 10.1) == [("over", "half-closed")]


def test_the_other_side_comes_late(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm, start_wait_segments=1)
    talks.talk.say(CLIENT, syn=True)
    talks.talk.say(CLIENT, b"x", fin=True)
    talks.talk.send(SERVER, 5001, b"y", ack=1003, at=3)
    assert (len(talks.handlers), talks.conversation.server.delivered) == (1, 1)
    talks.talk.send(SERVER, 5002, fin=True, ack=1003, at=3)
    assert talks.take()[-1] == ("over", "closed")


def test_a_side_without_a_stream_that_has_said_that_it_is_over(tcpreasm: ModuleType) -> None:
    """Of the client nothing was captured but acknowledgements, and its FIN."""
    talks = Talks(tcpreasm, start_wait_segments=1)
    talks.talk.send(SERVER, 5001, b"x", ack=1001)
    talks.talk.send(CLIENT, 1001, fin=True, ack=5002)
    assert talks.conversation.state == "half-closed"
    talks.talk.send(SERVER, 5002, fin=True, ack=1002)
    assert talks.take()[-2:] == [(SERVER, "complete"), ("over", "closed")]
    assert talks.conversation.closed_by == CLIENT


@pytest.mark.parametrize("how", ["close", "flush", "idle"])
def test_one_side_alone_that_nobody_closed(tcpreasm: ModuleType, how: str) -> None:
    talks = Talks(tcpreasm)
    talks.talk.say(CLIENT, syn=True)
    if how == "close":
        talks.assembler.close()
    elif how == "flush":
        talks.assembler.flush_older_than(1.0)
    log = expire(talks, 3601) if how == "idle" else talks.take()
    assert log[-2:] == [(CLIENT, "complete"), ("over", "opening")]


def test_a_side_that_is_idle_leaves_the_conversation_to_the_other_one(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm, idle_timeout=50)
    talks.talk.shake()
    for second in range(10, 70, 10):
        talks.talk.send(SERVER, 5001, b"", ack=1001, at=second)
    talks.take()
    talks.assembler.expire()
    assert talks.take() == [(CLIENT, "complete")]
    assert not talks.conversation.complete
    talks.talk.say(SERVER, b"x", fin=True, at=70)
    assert talks.take() == [(SERVER, b"x", 0), (SERVER, "complete"), ("over", "half-closed")]


def test_a_side_that_makes_room(tcpreasm: ModuleType) -> None:
    evicted: list[Any] = []
    talks = Talks(tcpreasm, max_connections=2, on_evict=lambda *told: evicted.append(told[2]))
    talks.talk.shake()
    talks.talk.say(CLIENT, b"x", at=1)
    talks.take()
    other = Talk(tcpreasm, talks.assembler, ("10.9.9.9", 1000, "10.0.0.2", 80))
    other.say(CLIENT, syn=True, at=2)
    assert talks.take() == [(SERVER, "complete"), ("new", CLIENT, "10.9.9.9:1000->10.0.0.2:80"), (CLIENT, b"", 0)]
    other.say(CLIENT, b"y", at=2)
    other.say(SERVER, syn=True, ack=1001, at=3)
    assert talks.take() == [(CLIENT, b"y", 0), (CLIENT, "complete"), (SERVER, b"", 0), ("over", "open")]
    assert evicted == ["half_open", "idle"]


# -- streams instead of handlers ----------------------------------------------------------------------------------------


def test_a_stream_for_each_side(tcpreasm: ModuleType) -> None:
    sides: list[Any] = []

    def streams(side: Any) -> Any:
        sides.append(side)
        return tcpreasm.BytesStream(side.net_flow, side.transport_flow)

    with tcpreasm.Assembler(tcpreasm.ConversationPool(streams=streams)) as assembler:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        talk.say(CLIENT, b"question")
        talk.say(SERVER, b"answer", fin=True)
    client, server = sides
    assert (client.stream.data, client.peer.stream.data) == (b"question", b"answer")
    assert client.stream is client.conversation.client.stream
    assert (client.stream.key, server.stream.key) == (client.key, server.key)
    assert client.conversation.handler is None
    assert server.stream.ended
    assert client.conversation.complete


def test_python_streams_for_sides(tcpreasm: ModuleType) -> None:
    log: list[Any] = []

    class Stream:
        def __init__(self, side: Any) -> None:
            self.side = side

        def reassembled(self, pieces: list[Any]) -> None:
            log.append((self.side.role, b"".join(map(bytes, pieces))))

        def reassembly_complete(self) -> None:
            log.append((self.side.role, self.side.peer.stream is not None, self.side.stream is self))

    with tcpreasm.Assembler(tcpreasm.ConversationPool(streams=Stream)) as assembler:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        talk.say(SERVER, b"y")
    assert log == [(CLIENT, b""), (SERVER, b""), (SERVER, b"y"), (CLIENT, True, True), (SERVER, True, True)]


@pytest.mark.parametrize("name", ["ByteCountStream", "BytesStream", "DigestStream", "SpanStream"])
def test_a_class_of_streams_by_itself(tcpreasm: ModuleType, name: str) -> None:
    """Made with the flows of each side. (A plain pool makes no objects for ByteCountStream: a side needs one.)"""
    capture = traffic(3)
    ended: list[Any] = []

    class Ends(Handler):
        def conversation_complete(self) -> None:
            ended.extend((str(side.key), side.delivered, side.skipped) for side in self.conversation.sides)

    tcpreasm.Assembler(tcpreasm.ConversationPool(lambda conversation: Ends([], conversation))).assemble_capture(capture)
    assert sum(skipped for _, _, skipped in ended) > 0
    summary = tcpreasm.Assembler(tcpreasm.ConversationPool(streams=getattr(tcpreasm, name))).assemble_capture(capture)
    expected = len(ended), sum(delivered for _, delivered, _ in ended), sum(skipped for _, _, skipped in ended)
    assert (summary.streams, summary.bytes_delivered, summary.bytes_skipped) == expected


def test_a_subclass_of_streams_is_called_with_the_side(tcpreasm: ModuleType) -> None:
    made: list[Any] = []

    class OfSide(tcpreasm.BytesStream):  # type: ignore[misc, name-defined]
        def __init__(self, side: Any) -> None:
            super().__init__(side.net_flow, side.transport_flow)
            made.append(self)

        def new(self) -> None:
            """What a factory of handlers has."""

    with tcpreasm.Assembler(tcpreasm.ConversationPool(streams=OfSide)) as assembler:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        talk.say(CLIENT, b"question")
    assert [(str(stream.key), stream.data) for stream in made] == [
        *(("10.0.0.1:1234->10.0.0.2:80", b"question"), ("10.0.0.2:80->10.0.0.1:1234", b"")),
    ]


@pytest.mark.parametrize("mode", ["factory", "streams"])
def test_a_side_is_the_same_object_as_long_as_it_is_open(tcpreasm: ModuleType, mode: str) -> None:
    """Whether anybody keeps it or not; from then on nothing keeps it but its user."""
    sides: list[Any] = []
    conversations: list[Any] = []

    class Keeps(Least):
        def __init__(self, conversation: Any) -> None:
            super().__init__(conversation)
            conversations.append(conversation)

        def reassembled(self, side: Any, pieces: list[Any]) -> None:
            sides.append(weakref.ref(side))

    def streams(side: Any) -> Any:
        sides.append(weakref.ref(side))
        conversations.append(side.conversation)
        return tcpreasm.ByteCountStream()

    pool = tcpreasm.ConversationPool(Keeps) if mode == "factory" else tcpreasm.ConversationPool(streams=streams)
    assembler = tcpreasm.Assembler(pool)
    gc.collect()
    gc.disable()
    try:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        talk.say(CLIENT, b"x", fin=True)
        conversation = conversations[0]
        assert [(side() is conversation.client, side() is conversation.server) for side in sides[:2]] == [(True, False), (False, True)]
        assert all(side() is conversation.client for side in sides[2:])
        talk.say(SERVER, fin=True)
        assert [side() for side in sides] == [None] * len(sides)
        assert conversation.client.delivered == 1
    finally:
        gc.enable()


def test_nobody_else_makes_them(tcpreasm: ModuleType) -> None:
    for cls in (tcpreasm.Conversation, tcpreasm.Side):
        with pytest.raises(TypeError):
            cls()
        for name in ("key", "state", "client", "first_seen_ns", "stream", "peer", "role", "net_flow", "packets"):
            if hasattr(cls, name):
                with pytest.raises((ValueError, AttributeError)):
                    getattr(cls.__new__(cls), name)


def test_a_side_that_no_pool_made_has_no_handler(tcpreasm: ModuleType) -> None:
    """The class that sides have in a pool with handlers can be had, too."""
    kinds: list[type] = []

    class Keeper(Least):
        def reassembled(self, side: Any, pieces: list[Any]) -> None:
            kinds.append(type(side))

    with tcpreasm.Assembler(tcpreasm.ConversationPool(Keeper)) as assembler:
        Talk(tcpreasm, assembler).say(CLIENT, b"text")
    for name in ("reassembled", "reassembly_complete"):
        with pytest.raises((ValueError, AttributeError)):
            getattr(kinds[0].__new__(kinds[0]), name)


def test_who_is_told_that_a_side_is_gone_may_ask_for_it(tcpreasm: ModuleType) -> None:
    """From the callback of a weak reference, while the old object still dies: the conversation gives another one."""
    done: list[Any] = []

    class Last(Least):
        def __init__(self, conversation: Any) -> None:
            super().__init__(conversation)
            self.conversation = conversation

        def conversation_complete(self) -> None:
            done.append(self.conversation)

    with tcpreasm.Assembler(tcpreasm.ConversationPool(Last)) as assembler:
        Talk(tcpreasm, assembler).say(CLIENT, b"text")
    got: list[Any] = []
    for _ in range(3):
        side = done[0].client
        gone = weakref.ref(side, lambda ref: got.append(done[0].client))
        del side
        assert gone() is None
        assert got[-1] is done[0].client
        assert got.pop().delivered == 4


def test_no_object_for_what_is_not_opened(tcpreasm: ModuleType) -> None:
    """A flood of SYNs under open_on="data": no call of the factory, and nothing left of it."""
    talks = Talks(tcpreasm, open_on="data", max_connections=100)
    for i in range(1000):
        Talk(tcpreasm, talks.assembler, (f"10.1.{i // 250}.{i % 250}", 1000, "10.0.0.2", 80)).say(CLIENT, syn=True)
    assert talks.take() == []
    talks.talk.shake()
    talks.talk.say(SERVER, b"first")
    assert talks.take() == [("new", CLIENT, "10.0.0.1:1234->10.0.0.2:80"), (SERVER, b"first", 0)]
    assert talks.conversation.handshake
    talks.assembler.close()
    assert talks.take() == [(SERVER, "complete"), ("over", "open")]


def test_what_is_over_is_let_go_of(tcpreasm: ModuleType) -> None:
    """Without the garbage collector: nothing of it refers to itself."""
    streams: list[Any] = []

    class Stream:
        def __init__(self, side: Any) -> None:
            streams.append(weakref.ref(self))

        def reassembled(self, pieces: list[Any]) -> None:
            pass

        reassembly_complete = gc.isenabled

    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(streams=Stream))
    gc.collect()
    gc.disable()
    try:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        assert [ref() is None for ref in streams] == [False, False]
        talk.say(CLIENT, fin=True)
        talk.say(SERVER, fin=True)
        assert [ref() is None for ref in streams] == [True, True]
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["factory", "streams"])
def test_a_pool_is_let_go_of(tcpreasm: ModuleType, mode: str) -> None:
    """With open conversations whose handlers know the assembler: the garbage collector finds them."""
    known: list[Any] = []

    class Knows(Least):
        def __init__(self, of: Any) -> None:
            super().__init__(of)
            self.known = known[0], of

        reassembly_complete = gc.isenabled

    pool = tcpreasm.ConversationPool(Knows) if mode == "factory" else tcpreasm.ConversationPool(streams=Knows)
    if mode == "streams":
        Knows.reassembled = lambda self, pieces: None  # type: ignore[method-assign, assignment]
    known.append(tcpreasm.Assembler(pool))
    Talk(tcpreasm, known[0]).shake()
    gone = weakref.ref(pool)
    del pool
    known.clear()
    gc.collect()
    assert gone() is None


def test_a_conversation_outlives_its_pool(tcpreasm: ModuleType) -> None:
    talks = Talks(tcpreasm)
    talks.talk.shake()
    conversation = talks.conversation
    del talks
    gc.collect()
    assert (conversation.handshake, conversation.client.packets, str(conversation.server.key)) == (True, 2, "10.0.0.2:80->10.0.0.1:1234")


# -- user code that raises or calls back --------------------------------------------------------------------------------


class Raises(Handler):
    plan: str = ""

    def raise_planned(self, call: str) -> None:
        if self.plan == call:
            self.plan = ""
            raise LookupError(call)

    def reassembled(self, side: Any, pieces: list[Any]) -> None:
        super().reassembled(side, pieces)
        self.raise_planned("reassembled")

    def side_complete(self, side: Any) -> None:
        super().side_complete(side)
        self.raise_planned(f"complete {side.role}")

    def conversation_complete(self) -> None:
        super().conversation_complete()
        self.raise_planned("over")


@pytest.mark.parametrize("call", ["reassembled", "complete client", "complete server", "over"])
def test_exceptions_pass_through_and_everything_is_told(tcpreasm: ModuleType, call: str) -> None:
    """Of a RST that ends both sides: whatever raises, the rest is called, and state is as it would have been."""
    log: list[Any] = []
    handlers: list[Raises] = []

    def new(conversation: Any) -> Raises:
        handlers.append(Raises(log, conversation))
        return handlers[-1]

    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(new))
    talk = Talk(tcpreasm, assembler)
    talk.shake()
    log.clear()
    handlers[0].plan = call
    with pytest.raises(LookupError, match=call):
        talk.say(CLIENT, rst=True)
    assert log == [(CLIENT, b"", 0), (CLIENT, "complete"), (SERVER, "complete"), ("over", "reset")]
    assert handlers[0].conversation.complete
    talk.send(CLIENT, 900_000, syn=True)
    assert len(handlers) == 2
    assembler.close()


def test_a_factory_that_raises_is_asked_again(tcpreasm: ModuleType) -> None:
    asked: list[Any] = []
    log: list[Any] = []

    def new(conversation: Any) -> Handler:
        asked.append(conversation)
        if len(asked) < 3:
            raise LookupError(len(asked))
        return Handler(log, conversation)

    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(new))
    talk = Talk(tcpreasm, assembler)
    for syn in ({"seq": 1000}, {"seq": 1000}):
        with pytest.raises(LookupError):
            talk.send(CLIENT, syn["seq"], syn=True)
    talk.say(CLIENT, syn=True)
    talk.say(SERVER, syn=True, ack=1001)
    talk.say(CLIENT, b"x")
    assert log[-1] == (CLIENT, b"x", 0)
    assert asked[-1].handshake
    assert len({str(conversation.key) for conversation in asked}) == 1


def test_a_stream_that_could_not_be_made_leaves_its_side_free(tcpreasm: ModuleType) -> None:
    made: list[Any] = []
    sides: list[Any] = []

    def streams(side: Any) -> Any:
        sides.append(side)
        if side.role == SERVER and len(made) < 2:
            made.append(None)
            raise LookupError
        made.append(tcpreasm.BytesStream(side.net_flow, side.transport_flow))
        return made[-1]

    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(streams=streams))
    talk = Talk(tcpreasm, assembler)
    talk.say(CLIENT, syn=True)
    with pytest.raises(LookupError):
        talk.send(SERVER, 5000, syn=True, ack=1001)
    talk.send(SERVER, 5000, syn=True, ack=1001)
    talk.say(CLIENT, b"x", ack=5001)
    assert len(made) == 3
    assembler.close()
    assert made[0].data == b"x"
    assert [side.peer.stream for side in sides] == [made[2], made[0], made[0]]


def test_who_makes_the_streams_is_told_of_each_conversation_that_is_complete(tcpreasm: ModuleType) -> None:
    """Once, last, whether or not there is a handler of its own."""

    class Streams:
        def __init__(self) -> None:
            self.told: list[str] = []

        def new(self, side: Any) -> Any:
            self.told.append(f"new {side.role}")
            return tcpreasm.BytesStream()

        def conversation_complete(self, conversation: Any) -> None:
            data = [side.stream.data for side in conversation.sides]
            self.told.append(f"{conversation.state} {conversation.complete} {data} {[side.stream.complete for side in conversation.sides]}")

    streams = Streams()
    with tcpreasm.Assembler(tcpreasm.ConversationPool(streams=streams)) as assembler:
        talk = Talk(tcpreasm, assembler)
        talk.say(CLIENT, syn=True)
        talk.send(SERVER, 5000, syn=True, ack=1001)
        talk.say(CLIENT, b"x", ack=5001)
        assert streams.told == ["new client", "new server"]
    assert streams.told[2:] == ["open True [b'x', b''] [True, True]"]


def test_what_is_no_handler_and_no_pool(tcpreasm: ModuleType) -> None:
    for arguments, text in (
        ((), "a factory or streams=, not neither"),
        ((3,), r"new\(conversation\) or is callable, not 3"),
    ):
        with pytest.raises(TypeError, match=text):
            tcpreasm.ConversationPool(*arguments)
    with pytest.raises(TypeError, match="not both"):
        tcpreasm.ConversationPool(Handler, streams=Handler)
    with pytest.raises(TypeError, match=r"streams is a callable of a Side, or has a method new\(side\), not 3"):
        tcpreasm.ConversationPool(streams=3)
    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(lambda conversation: 7))
    text = r"the factory gave 7 for 10.0.0.1:1234->10.0.0.2:80: a handler has reassembled\(\) and conversation_complete\(\)"
    with pytest.raises(TypeError, match=text):
        Talk(tcpreasm, assembler).say(CLIENT, syn=True)
    for name in ("ByteCountStream", "BytesStream", "DigestStream", "SpanStream"):
        assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(getattr(tcpreasm, name)))
        with pytest.raises(TypeError, match=r"a handler has reassembled\(\) and conversation_complete\(\)"):
            Talk(tcpreasm, assembler).say(CLIENT, syn=True)
    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(streams=lambda side: 7))
    with pytest.raises(TypeError, match="a stream has reassembled"):
        Talk(tcpreasm, assembler).say(CLIENT, syn=True)
    assert len(assembler.pool) == 0


class Least:
    """A handler with nothing but what it needs."""

    def __init__(self, conversation: Any) -> None:
        self.count = 0

    def reassembled(self, side: Any, pieces: list[Any]) -> None:
        self.count += sum(map(len, pieces))

    def conversation_complete(self) -> None:
        self.count = -self.count


def test_a_factory_object_and_a_handler_without_side_complete(tcpreasm: ModuleType) -> None:
    made: list[Least] = []

    class Factory:
        def new(self, conversation: Any) -> Least:
            made.append(Least(conversation))
            return made[-1]

    factory = Factory()
    with tcpreasm.Assembler(tcpreasm.ConversationPool(factory)) as assembler:
        talk = Talk(tcpreasm, assembler)
        talk.shake()
        talk.say(CLIENT, b"abc")
        talk.say(SERVER, b"de")
        assert assembler.pool.factory is factory
        assert made[0].count == 5
    assert made[0].count == -5


@pytest.mark.parametrize("call", ["new", "reassembled", "side_complete", "conversation_complete"])
def test_a_callback_into_the_assembler_is_refused(tcpreasm: ModuleType, call: str) -> None:
    """And into another one of the pool, for the conversation at hand: the side that is served is left as it is, the other one is ended."""
    told: list[Any] = []

    class Calls(Least):
        def __init__(self, conversation: Any) -> None:
            super().__init__(conversation)
            self.conversation = conversation
            self.call("new")

        def call(self, name: str) -> None:
            if name == call and not told:
                told.append(name)
                for what in (assembler.close, assembler.flush_all):
                    with pytest.raises(RuntimeError, match="at work already"):
                        what()

        def reassembled(self, side: Any, pieces: list[Any]) -> None:
            self.call("reassembled")

        def side_complete(self, side: Any) -> None:
            self.call("side_complete")

        def conversation_complete(self) -> None:
            self.call("conversation_complete")

    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(Calls))
    talk = Talk(tcpreasm, assembler)
    talk.shake()
    talk.say(CLIENT, rst=True)
    assert told == [call]
    assert len(assembler.pool) == 0
    assembler.close()


def test_a_reset_through_another_assembler_from_the_handler_of_the_other_side(tcpreasm: ModuleType) -> None:
    """The side that is being served cannot be ended then; it is when everything is."""
    log: list[Any] = []

    class Nests(Handler):
        def reassembled(self, side: Any, pieces: list[Any]) -> None:
            super().reassembled(side, pieces)
            if side.role == CLIENT and side.delivered:
                inner.send(SERVER, 5001, rst=True, ack=1)

    pool = tcpreasm.ConversationPool(lambda conversation: Nests(log, conversation))
    one, two = tcpreasm.Assembler(pool), tcpreasm.Assembler(pool)
    talk, inner = Talk(tcpreasm, one), Talk(tcpreasm, two)
    talk.shake()
    log.clear()
    talk.say(CLIENT, b"x")
    assert log == [(CLIENT, b"x", 0), (SERVER, b"", 0), (SERVER, "complete")]
    two.close()
    one.close()
    assert log[3:] == [(CLIENT, "complete"), ("over", "reset")]


# -- several assemblers, threads, blocks ----------------------------------------------------------------------------------


def test_each_direction_through_an_assembler_of_its_own(tcpreasm: ModuleType) -> None:
    log: list[Any] = []
    pool = tcpreasm.ConversationPool(lambda conversation: Handler(log, conversation))
    talks = {who: Talk(tcpreasm, tcpreasm.Assembler(pool)) for who in (CLIENT, SERVER)}
    talk = Talk(tcpreasm, None)
    for who, payload, flags in (
        *((CLIENT, b"", {"syn": True}), (SERVER, b"", {"syn": True, "ack": 1001}), (CLIENT, b"q", {}), (SERVER, b"a", {"fin": True})),
        (CLIENT, b"", {"rst": True}),
    ):
        talk.assembler = talks[who].assembler
        talk.say(who, payload, **flags)
    assert log[3:] == [
        (CLIENT, b"q", 0),
        (SERVER, b"a", 0),
        (SERVER, "complete"),
        (CLIENT, b"", 0),
        (CLIENT, "complete"),
        ("over", "reset"),
    ]


def test_two_threads_one_direction_each(tcpreasm: ModuleType) -> None:
    """Whatever comes first: each conversation has both sides at the end, and is told of once."""
    count = 150
    over: list[Any] = []
    pairs: dict[str, Any] = {}

    class Ends(Least):
        def __init__(self, conversation: Any) -> None:
            super().__init__(conversation)
            self.conversation = conversation
            assert str(conversation.key) not in pairs
            pairs[str(conversation.key)] = conversation

        def conversation_complete(self) -> None:
            over.append(str(self.conversation.key))

    pool = tcpreasm.ConversationPool(Ends)
    errors: list[BaseException] = []

    def run(who: str) -> None:
        try:
            assembler = tcpreasm.Assembler(pool)
            for i in range(count):
                talk = Talk(tcpreasm, assembler, (f"10.1.0.{i}", 1000, "10.0.0.2", 80))
                if who == CLIENT:
                    talk.send(CLIENT, 1000, syn=True)
                    talk.send(CLIENT, 1001, b"question", fin=True, ack=5001)
                else:
                    talk.send(SERVER, 5000, syn=True, ack=1001)
                    talk.send(SERVER, 5001, b"answer", fin=True, ack=1001)
        except BaseException as raised:
            errors.append(raised)

    threads = [threading.Thread(target=run, args=(who,)) for who in (CLIENT, SERVER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(pairs) == count
    assert sorted(over) == sorted(pairs)
    assert all((one.client.delivered, one.server.delivered, one.state) == (8, 6, "closed") for one in pairs.values())


@pytest.mark.parametrize("fails", [False, True])
def test_two_threads_one_handler(tcpreasm: ModuleType, fails: bool) -> None:
    """While one makes it, the other one waits; and makes it itself where that fails."""
    inside, outside = threading.Event(), threading.Event()
    made: list[Any] = []
    log: list[Any] = []
    raised: list[BaseException] = []

    def new(conversation: Any) -> Handler:
        made.append(threading.current_thread().name)
        if len(made) == 1:
            inside.set()
            outside.wait(60)
            if fails:
                raise LookupError
        return Handler(log, conversation)

    pool = tcpreasm.ConversationPool(new)
    assemblers = [tcpreasm.Assembler(pool) for _ in range(2)]

    def run(who: str, number: int) -> None:
        try:
            talk = Talk(tcpreasm, assemblers[number])
            if who == CLIENT:
                talk.send(CLIENT, 1000, syn=True)
            else:
                inside.wait(60)
                threading.Timer(0.1, outside.set).start()  # while this waits, most likely; what comes out is the same
                talk.send(SERVER, 5000, syn=True, ack=1001)
        except LookupError as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(who, number), name=who) for number, who in enumerate((CLIENT, SERVER))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ([CLIENT, SERVER] if fails else [CLIENT])
    assert len(raised) == fails
    expected = [("new", CLIENT, "10.0.0.1:1234->10.0.0.2:80"), (SERVER, b"", 0), *([] if fails else [(CLIENT, b"", 0)])]
    assert sorted(log, key=str) == sorted(expected, key=str)


def traffic(seed: int, conversations: int = 40) -> bytes:
    """A capture of whole conversations side by side, some packets lost, some in another order."""
    rng = random.Random(seed)
    lanes = []
    for i in range(conversations):
        ends: Ends = (f"10.2.{i // 200}.{i % 200}", 2000 + i, "10.0.0.2", 80)
        back: Ends = (ends[2], ends[3], ends[0], ends[1])
        lane = [frame(1000, flags=SYN, ends=ends), frame(5000, flags=SYN | ACK, ends=back, ack=1001), frame(1001, ends=ends, ack=5001)]
        at = {ends: 1001, back: 5001}
        for _ in range(rng.randrange(2, 30)):
            who, other = (ends, back) if rng.random() < 0.4 else (back, ends)
            text = rng.randbytes(rng.randrange(1, 900))
            lane.append(frame(at[who], text, ends=who, ack=at[other]))
            at[who] += len(text)
            lane.append(frame(at[other], ends=other, ack=at[who]))
        if rng.random() < 0.3:
            lane.append(frame(at[ends], flags=RST, ends=ends))
        else:
            lane += [
                frame(at[back], flags=FIN | ACK, ends=back, ack=at[ends]),
                frame(at[ends], flags=FIN | ACK, ends=ends, ack=at[back] + 1),
            ]
        lanes.append([data for n, data in enumerate(lane) if n < 3 or rng.random() > 0.03])
    packets = []
    while lanes:
        lane = rng.choice(lanes)
        packets.append((len(packets) * NS // 50, lane.pop(0)))
        if not lane:
            lanes.remove(lane)
    return pcap(packets)


def told(finished: Any) -> tuple[Any, ...]:
    return (
        *(str(finished.key), finished.state, finished.closed_by, finished.handshake_time_ns),
        *((side.data, side.gaps, side.packets, side.acked) for side in (finished.client, finished.server)),
    )


@pytest.mark.parametrize("options", [{"threads": 2}, {"threads": 3, "coalesce": True}, {"coalesce": True}])
def test_threads_and_blocks_give_the_same(tcpreasm: ModuleType, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "capture.pcap"
    path.write_bytes(traffic(5))
    expected = sorted(told(finished) for finished in tcpreasm.conversations(path))
    came: dict[str, Any] = {}

    class Collects:
        def __init__(self, conversation: Any) -> None:
            self.conversation = conversation
            self.data: dict[str, bytearray] = {CLIENT: bytearray(), SERVER: bytearray()}
            came[str(conversation.key)] = self

        def reassembled(self, side: Any, pieces: list[Any]) -> None:
            for piece in pieces:
                self.data[side.role] += bytes(piece)

        def conversation_complete(self) -> None:
            self.state = self.conversation.state

    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(Collects))
    summary = assembler.assemble_capture(path, **options)
    assert summary.streams == 80
    assert sorted((key, one.state, bytes(one.data[CLIENT]), bytes(one.data[SERVER])) for key, one in came.items()) == [
        (key, state, client[0], server[0]) for key, state, _, _, client, server in expected
    ]


def test_conversations_yields_while_it_reads(tcpreasm: ModuleType) -> None:
    """In the order in which they end, and holding no more than is open."""
    read = 0

    def frames() -> Any:
        nonlocal read
        for i in range(300):
            ends: Ends = (f"10.2.0.{i % 200}", 2000 + i, "10.0.0.2", 80)
            back: Ends = (ends[2], ends[3], ends[0], ends[1])
            for data in (
                *(frame(1000, flags=SYN, ends=ends), frame(5000, flags=SYN | ACK, ends=back, ack=1001)),
                *(frame(1001, b"q" * i, flags=FIN | ACK, ends=ends, ack=5001), frame(5001, flags=FIN | ACK, ends=back, ack=1002 + i)),
            ):
                read += 1
                yield 1.0 + i, data

    seen = []
    for finished in tcpreasm.conversations(frames()):
        seen.append(finished.client.data)
        assert read <= 4 * len(seen) + 64
    assert seen == [b"q" * i for i in range(300)]


def test_what_conversations_yields(tcpreasm: ModuleType) -> None:
    packets = [frame(1000, flags=SYN), frame(5000, flags=SYN | ACK, ends=BACK, ack=1001), frame(1001, b"q", ack=5001)]
    packets.append(frame(5003, b"a", ends=BACK, ack=1002))
    (finished,) = tcpreasm.conversations(pcap([(n * NS, data) for n, data in enumerate(packets)]))
    assert str(finished) == "10.0.0.1:1234->10.0.0.2:80 1 bytes and back 1, open"
    assert finished.key == finished.client.key == finished.server.key.reverse()
    assert (finished.client.data, finished.client.gaps, finished.server.data, finished.server.gaps) == (b"q", (), b"a", ((0, 2),))
    assert (finished.server.missing, finished.server.skipped, finished.server.packets) == (2, 2, 2)
    assert (finished.handshake_time_ns, finished.handshake_time, finished.syn_ns) == (2 * NS, 2.0, 0)
    assert (finished.first_seen_ns, finished.last_seen_ns, finished.guessed, finished.closed_by) == (0, 3 * NS, False, None)


def test_what_is_yielded_is_what_the_constructors_make(tcpreasm: ModuleType) -> None:
    """Field for field, frozen, and equal to what the constructor makes of the same."""
    (stream, *_), (finished, *_) = tcpreasm.follow(traffic(7)), tcpreasm.conversations(traffic(7))
    for made in (stream, finished, finished.client, finished.server):
        values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        assert type(made)(**values) == made == dataclasses.replace(made) == copy.copy(made)
        assert hash(type(made)(**values)) == hash(made)
        assert repr(type(made)(**values)) == repr(made)
        for name in values:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(made, name, None)
        with pytest.raises((AttributeError, TypeError)):
            made.another = 1
    assert type(finished) is tcpreasm.FinishedConversation
    assert type(finished.client) is tcpreasm.FinishedSide
    assert type(stream) is tcpreasm.FinishedStream


# -- real captures ------------------------------------------------------------------------------------------------------

STATES = {  # of edge.pcap, by what `case` begins with: state, closed by, how
    "RST close by client": ("reset", CLIENT, "rst"),
    "client closes with unread data": ("reset", CLIENT, "rst"),
    "port reuse: connection 0": ("reset", CLIENT, "rst"),
    "port reuse: connection 1": ("reset", CLIENT, "rst"),
    "port reuse: connection 2": ("closed", SERVER, "fin"),
    "port reuse: connection 3": ("closed", SERVER, "fin"),
    "simultaneous open": ("closed", CLIENT, "fin"),
    "zero window": ("closed", CLIENT, "fin"),
    "600 one-byte segments": ("closed", CLIENT, "fin"),
    "handshake and close": ("closed", CLIENT, "fin"),
    "half-close: client": ("closed", CLIENT, "fin"),
    "half-close: server": ("closed", SERVER, "fin"),
    "TCP Fast Open": ("closed", CLIENT, "fin"),
    "keep-alive probes": ("closed", CLIENT, "fin"),
    "both sides close": ("closed", CLIENT, "fin"),
    "still open": ("open", None, None),
    "urgent data": ("closed", CLIENT, "fin"),
}
CAPTURES = (
    *("edge/edge.pcap", "http_python_v4_v6/http_python_v4_v6.pcap", "ipfrag/ipfrag_atA.pcap", "ipfrag/ipfrag_atB.pcap"),
    *("linktypes/any_sll.pcap", "linktypes/any_sll2.pcap", "linktypes/nano_ns.pcap", "lossy_3pct/lossy_3pct_atB.pcap"),
    *("mptcp/mptcp.pcap", "vxlan/vxlan_inner.pcap", "vxlan/vxlan_outer.pcap"),
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def ends_of(finished: Any) -> Any:
    net_flow, transport_flow = finished.key
    return [str(net_flow.src), transport_flow.src], [str(net_flow.dst), transport_flow.dst]


@pytest.mark.parametrize("name", CAPTURES)
def test_who_was_client_and_what_was_said(tcpreasm: ModuleType, corpus: Path, name: str) -> None:
    truth = json.loads((corpus / "kernel" / name).with_name("truth.json").read_text())["connections"]
    expected = [
        (one["client"], one["server"], *((one[way]["len"], one[way]["sha256"]) for way in ("c2s", "s2c")))
        for one in sorted(truth, key=lambda one: one.get("order", 0))
    ]
    came = list(tcpreasm.conversations(corpus / "kernel" / name))
    refused = [finished for finished in came if finished.state == "refused"]
    assert [ends_of(finished) for finished in refused] == ([(["10.99.0.1", 51890], ["10.99.0.2", 9099])] if "edge" in name else [])
    talked = [finished for finished in came if finished.state != "refused"]
    found = [(*ends_of(one), *((len(side.data), sha256(side.data)) for side in (one.client, one.server))) for one in talked]
    assert sorted(found) == sorted(expected)
    for finished in talked:
        assert finished.handshake
        assert not finished.guessed
        assert finished.state in ("closed", "reset", "half-closed", "open")
        assert finished.client.gaps == finished.server.gaps == ()


def test_every_case_of_edge_closes_as_it_did(tcpreasm: ModuleType, corpus: Path) -> None:
    folder = corpus / "kernel" / "edge"
    truth = json.loads((folder / "truth.json").read_text())["connections"]
    states: dict[Any, list[Any]] = defaultdict(list)
    for finished in tcpreasm.conversations(folder / "edge.pcap"):
        states[str(ends_of(finished))].append((finished.state, finished.closed_by, finished.closed_how))
    for one in sorted(truth, key=lambda one: one.get("order", 0)):
        (expected,) = [state for case, state in STATES.items() if one["case"].startswith(case)]
        assert states[str((one["client"], one["server"]))].pop(0) == expected, one["case"]
    assert [state for left in states.values() for state in left] == [("refused", SERVER, "rst")]


@pytest.mark.parametrize("name", [name for name in CAPTURES if "vxlan_outer" not in name and "atB.pcap" not in name])
def test_the_handshake_time_is_that_of_the_packets(tcpreasm: ModuleType, corpus: Path, name: str) -> None:
    """As tshark's tcp.analysis.initial_rtt: from the SYN that is answered to what acknowledges the answer. Here from the decoded segments
    alone, by sequence numbers."""
    decode: Callable[..., Any] = __import__(f"{tcpreasm.__name__}._pure.decode", fromlist=["decode"]).decode
    opened: dict[Any, Any] = {}  # by who opened: capture time, sequence numbers of the SYN and of what answers it
    answered: dict[Any, int] = {}
    times: list[int] = []
    with tcpreasm.open_capture(corpus / "kernel" / name) as capture:
        for captured in capture:
            _, found = decode(captured.data, captured.linktype, captured.wire_length, 0, 0)
            if found is None or not hasattr(found, "ack"):
                continue
            here, there = (found.src, found.src_port), (found.dst, found.dst_port)
            flags = found.flags & (SYN | ACK | RST)
            if flags == SYN:
                opened.setdefault((here, there), {}).setdefault(found.seq, captured.timestamp_ns)
            elif flags == SYN | ACK:
                for seq, time in opened.get((there, here), {}).items():
                    if 0 < found.ack - seq < 1000:
                        answered[there, here, found.seq + 1] = time
            elif flags == ACK and (here, there, found.ack) in answered:
                times.append(captured.timestamp_ns - answered.pop((here, there, found.ack)))
    expected = sorted(times)
    assert sorted(one.handshake_time_ns for one in tcpreasm.conversations(corpus / "kernel" / name) if one.handshake) == expected
    assert len(expected) >= 15
