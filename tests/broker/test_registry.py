"""The registry with real connections: who is introduced to whom, with which ring, in which order."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve.broker import wire
from ringserve.broker.cable import Cable
from ringserve.broker.control import ControlChannel, ControlClosed, Received
from ringserve.broker.messages import PROTOCOL_VERSION, Hello, PeerJoined, PeerLeft, Ready, Role, Stop, Welcome
from ringserve.broker.registry import Arrivals, Registry


class Broker:
    """A registry on a real listening socket, turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "broker.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen()
        self.selector = selectors.DefaultSelector()
        self.registry = Registry(self.listener, self.selector, first_peer_id=1000)

    def turn(self) -> Arrivals:
        arrivals = Arrivals()
        for key, _ in self.selector.select(1.0):
            key.data(arrivals)
        return arrivals

    def turn_until(self, count: int, field: str) -> Arrivals:
        """Turn until `count` things of that kind have arrived."""
        total = Arrivals()
        for _ in range(20):
            arrivals = self.turn()
            for name in ("joined", "messages", "left", "refused"):
                getattr(total, name).extend(getattr(arrivals, name))
            total.outdated = total.outdated or arrivals.outdated
            if len(getattr(total, field)) >= count:
                return total
        raise AssertionError(f"{field}: {total}")

    def join(self, role: Role, inbox: str = "") -> ControlChannel:
        channel = ControlChannel.connect(self.path)
        hello = Hello(PROTOCOL_VERSION, role, os.getpid(), inbox, 4096, 0, 0)
        if role is Role.POOL:
            channel.send(hello)
        else:
            ring = os.memfd_create("ring")
            os.write(ring, f"ring of {inbox}".encode())
            channel.send(hello, (ring,))
            os.close(ring)
        self.turn_until(1, "joined")
        return channel


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.registry.close()
    broker.selector.close()
    broker.listener.close()


def read(channel: ControlChannel) -> list[Received]:
    return channel.receive()


def test_a_newcomer_is_welcomed_with_its_own_id(broker: Broker) -> None:
    first, second = broker.join(Role.FRONTEND), broker.join(Role.FRONTEND)
    assert [received.message for received in read(first)] == [Welcome(1000)]
    assert [received.message for received in read(second)] == [Welcome(1001)]


def test_frontends_and_workers_learn_of_each_other_with_their_rings(broker: Broker) -> None:
    frontend = broker.join(Role.FRONTEND, "/f")
    worker = broker.join(Role.WORKER, "/w")
    welcome, joined = read(worker)
    assert welcome.message == Welcome(1001)
    assert joined.message == PeerJoined(1000, Role.FRONTEND, 4096)
    assert os.pread(joined.fds[0], 100, 0) == b"ring of /f"
    _, joined_too = read(frontend)
    assert joined_too.message == PeerJoined(1001, Role.WORKER, 4096)
    assert os.pread(joined_too.fds[0], 100, 0) == b"ring of /w"
    for fd in [*welcome.fds, *joined.fds, *joined_too.fds]:
        os.close(fd)


def test_each_has_a_cable_to_the_broker_and_workers_have_one_to_each_frontend(broker: Broker) -> None:
    frontend = broker.join(Role.FRONTEND, "/f")
    worker = broker.join(Role.WORKER)
    welcome, joined = read(worker)
    (peer,) = broker.registry.of_role(Role.WORKER)
    (other_peer,) = broker.registry.of_role(Role.FRONTEND)
    assert peer.cable is not None
    assert other_peer.cable is not None
    at_worker, other_at_worker = Cable.of_fd(welcome.fds[0]), Cable.of_fd(joined.fds[1])
    welcomed, joined_too = read(frontend)
    to_broker, at_frontend = Cable.of_fd(welcomed.fds[0]), Cable.of_fd(joined_too.fds[1])
    to_broker.send(b"submit")
    at_worker.send(b"done")
    other_at_worker.send(b"result")
    assert other_peer.cable.receive() == [b"submit"]
    assert peer.cable.receive() == [b"done"]
    assert at_frontend.receive() == [b"result"]
    peer.cable.close()
    other_peer.cable.close()
    assert (to_broker.receive(), to_broker.over) == ([], True), "nobody else holds the other end"
    assert (at_worker.receive(), at_worker.over) == ([], True), "nobody else holds the other end"
    at_frontend.close()
    assert (other_at_worker.receive(), other_at_worker.over) == ([], True), "nobody else holds the other end"
    for fd in (joined.fds[0], joined_too.fds[0]):
        os.close(fd)
    to_broker.close()
    at_worker.close()
    other_at_worker.close()


def test_workers_do_not_learn_of_workers(broker: Broker) -> None:
    first = broker.join(Role.WORKER, "/w0")
    broker.join(Role.WORKER, "/w1")
    broker.join(Role.POOL)
    assert [type(received.message) for received in read(first)] == [Welcome]


def test_end_of_file_is_a_death_and_is_told(broker: Broker, tmp_path: Path) -> None:
    inbox = tmp_path / "f.inbox"
    inbox.touch()
    worker = broker.join(Role.WORKER)
    frontend = broker.join(Role.FRONTEND, str(inbox))
    read(worker)
    frontend.close()
    arrivals = broker.turn_until(1, "left")
    assert [peer.peer_id for peer in arrivals.left] == [1001]
    assert [received.message for received in read(worker)] == [PeerLeft(1001)]
    assert not inbox.exists(), "a killed process cannot remove its inbox, so the registry does"
    assert list(broker.registry.peers) == [1000]


def test_what_was_sent_before_the_death_still_arrives(broker: Broker) -> None:
    worker = broker.join(Role.WORKER, "/w")
    worker.send(Ready([["m", 1]], True))
    worker.close()
    arrivals = broker.turn_until(1, "left")
    assert [message for _, message in arrivals.messages] == [Ready([["m", 1]], True)]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (Hello(PROTOCOL_VERSION + 1, Role.WORKER, 1, "", 0, 0, 0), "protocol"),
        (PeerLeft(3), "in place of Hello"),
        (Hello(PROTOCOL_VERSION, 9, 1, "", 0, 0, 0), "role 9"),
        (Hello(PROTOCOL_VERSION, Role.WORKER, 1, "/w", 4096, 0, 0), "0 rings"),
    ],
)
def test_who_does_not_belong_is_refused_with_the_reason(
    broker: Broker, first: Hello | PeerLeft, reason: str
) -> None:
    channel = ControlChannel.connect(broker.path)
    channel.send(first)
    arrivals = broker.turn_until(1, "refused")
    assert reason in arrivals.refused[0]
    assert broker.registry.peers == {}
    channel.close()


@pytest.fixture
def younger() -> Iterator[int]:
    """A process that began after this one."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("role", [Role.FRONTEND, Role.POOL])
@pytest.mark.parametrize("protocol", [PROTOCOL_VERSION + 1, PROTOCOL_VERSION - 1])
def test_of_two_releases_who_began_first_is_to_end(broker: Broker, role: Role, protocol: int, younger: int) -> None:
    """A process that began before the broker is told to stop; a broker that did so ends if it serves nobody."""
    older = ControlChannel.connect(broker.path)
    older.send(Hello(protocol, role, 1, "", 0, 0, 0))
    assert broker.turn_until(1, "refused").outdated == ""
    assert [type(received.message) for received in read(older)] == [Stop]
    with pytest.raises(ControlClosed):
        read(older)
    newer = Hello(protocol, role, younger, "", 0, 0, 0)
    for here, ends in ((True, False), (False, True)):
        peer = broker.join(role) if here else None
        channel = ControlChannel.connect(broker.path)
        channel.send(newer)
        assert bool(broker.turn_until(1, "refused").outdated) is ends
        with pytest.raises(ControlClosed):
            read(channel)
        channel.close()
        if peer is not None:
            peer.close()
            broker.turn_until(1, "left")
    older.close()


def test_a_hello_with_other_fields_of_another_release_is_refused_in_words(broker: Broker) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(broker.path)
        body = wire.pack_fields((0, PROTOCOL_VERSION + 1, int(Role.WORKER), 77, {"more": 1}, 2, 3, 4, 5, 6))
        stranger.sendall(struct.pack("<IB", len(body), 0) + body)
        arrivals = broker.turn_until(1, "refused")
    assert f"process 77 speaks protocol {PROTOCOL_VERSION + 1}" in arrivals.refused[0]


def test_no_descriptor_is_left_open(broker: Broker) -> None:
    before = len(os.listdir("/proc/self/fd"))
    channels = [broker.join(Role.FRONTEND, f"/f{n}") for n in range(3)]
    channels += [broker.join(Role.WORKER, f"/w{n}") for n in range(3)]
    for channel in channels:
        try:
            for received in channel.receive():
                for fd in received.fds:
                    os.close(fd)
        finally:
            channel.close()
    broker.turn_until(6, "left")
    assert len(os.listdir("/proc/self/fd")) == before
