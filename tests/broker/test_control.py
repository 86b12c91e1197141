"""The registration channel on real sockets: framing, descriptors, back-pressure, end-of-file."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.broker.control import ControlChannel, ControlClosed, ControlMessage, Received
from ringserve.broker.messages import PROTOCOL_VERSION, Catalog, Hello, Loaded, PeerJoined, PeerLeft, Stop, VersionInfo


@pytest.fixture
def pair() -> tuple[ControlChannel, ControlChannel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return ControlChannel(ours), ControlChannel(theirs)


def receive_all(channel: ControlChannel, count: int) -> list[Received]:
    messages: list[Received] = []
    while len(messages) < count:
        assert select.select([channel.fd], [], [], 10)[0], f"only {len(messages)} of {count} messages came"
        messages += channel.receive()
    return messages


def test_messages_arrive_in_order_with_their_types(pair: tuple[ControlChannel, ControlChannel]) -> None:
    ours, theirs = pair
    catalog = Catalog([VersionInfo("m", 1, 30, 0, "", b"\x00" * 300, ["warm"])], ["m"], {"m": {"stable": 1}}, [])
    sent: list[ControlMessage] = [
        Hello(PROTOCOL_VERSION, 1, os.getpid(), "/x", 4096, -1, 0), PeerLeft(3), catalog, Stop("now")
    ]
    for message in sent:
        ours.send(message)
    assert [received.message for received in receive_all(theirs, 4)] == sent


def test_too_many_descriptors_under_way_lose_no_message(pair: tuple[ControlChannel, ControlChannel]) -> None:
    """The kernel takes no more of them than a process may have open, and calls that an error."""
    ours, theirs = pair

    class Short:
        calls = 0

        def sendmsg(self, *_: object) -> int:
            raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")

    real = ours._socket
    ours._socket = Short()  # type: ignore[assignment]
    ours.send(PeerJoined(1, 3, 4096), (ours.fd,))
    ours.send(PeerLeft(2))
    assert ours.unsent
    ours._socket = real
    ours.flush()
    received = receive_all(theirs, 2)
    assert [each.message for each in received] == [PeerJoined(1, 3, 4096), PeerLeft(2)]
    assert [len(each.fds) for each in received] == [1, 0]
    os.close(received[0].fds[0])


def test_descriptors_go_with_their_own_message(pair: tuple[ControlChannel, ControlChannel]) -> None:
    ours, theirs = pair
    files = []
    for index in range(3):
        fd = os.memfd_create(f"ring-{index}")
        os.write(fd, str(index).encode())
        files.append(fd)
        ours.send(PeerJoined(index, 3, 4096), (fd,))
        ours.send(PeerLeft(100 + index))
        os.close(fd)  # the channel holds a duplicate of its own
    received = receive_all(theirs, 6)
    for index in range(3):
        assert len(received[2 * index].fds) == 1
        assert os.pread(received[2 * index].fds[0], 10, 0) == str(index).encode()
        assert received[2 * index + 1].fds == []
        os.close(received[2 * index].fds[0])


def test_a_message_larger_than_the_socket_buffer_waits_for_the_reader(
    pair: tuple[ControlChannel, ControlChannel],
) -> None:
    ours, theirs = pair
    loaded = Loaded("m", 1, 0, "", os.urandom(5_000_000))
    ours.send(loaded)
    assert ours.unsent
    messages: list[Received] = []
    while not messages:
        messages = theirs.receive()
        ours.flush()
    assert messages[0].message == loaded
    assert not ours.unsent


def test_end_of_file_comes_after_the_last_message(pair: tuple[ControlChannel, ControlChannel]) -> None:
    ours, theirs = pair
    ours.send(PeerLeft(1))
    ours.close()
    assert [received.message for received in theirs.receive()] == [PeerLeft(1)]
    with pytest.raises(ControlClosed):
        theirs.receive()


def test_sending_to_the_dead_is_silent_and_reading_tells(pair: tuple[ControlChannel, ControlChannel]) -> None:
    ours, theirs = pair
    theirs.close()
    for _ in range(3):
        ours.send(PeerLeft(1))
    with pytest.raises(ControlClosed):
        ours.receive()


def test_a_message_without_its_descriptor_ends_the_connection() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = ControlChannel(theirs)
    body = b"\x92\x03\x01"  # PeerLeft(1)
    ours.sendall(struct.pack("<IB", len(body), 1) + body)
    with pytest.raises(ControlClosed, match="descriptor"):
        channel.receive()
    ours.close()


@given(data=st.binary(min_size=1, max_size=400))
@settings(max_examples=200)
def test_random_bytes_are_ignored_or_end_the_connection(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = ControlChannel(theirs)
    try:
        ours.sendall(data)
        try:
            channel.receive()
        except ControlClosed:
            pass
    finally:
        channel.close()
        ours.close()


@given(cuts=st.lists(st.integers(1, 60), max_size=8))
def test_bytes_split_anywhere_give_the_same_messages(cuts: list[int]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sender, receiver = ControlChannel(ours), ControlChannel(theirs)
    sent: list[ControlMessage] = [PeerLeft(1), Stop("because"), Hello(PROTOCOL_VERSION, 2, 3, "/path", 5, -1, 0)]
    capture_a, capture_b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    recorder = ControlChannel(capture_a)
    for message in sent:
        recorder.send(message)
    stream = capture_b.recv(65536)
    messages = []
    start = 0
    for end in [*sorted({min(cut, len(stream)) for cut in cuts}), len(stream)]:
        if end > start:
            ours.send(stream[start:end])
            messages += [received.message for received in receiver.receive()]
            start = end
    assert messages == sent
    for channel in (sender, receiver, recorder):
        channel.close()
    capture_b.close()


@pytest.mark.parametrize("hung_up", [False, True])
def test_the_process_at_the_other_end_is_ended_while_it_holds_that(tmp_path: Path, hung_up: bool) -> None:
    program = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); input(); s.close()"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        command = [sys.executable, "-c", f"{program}; input()", str(tmp_path / "s")]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
            channel = ControlChannel(listener.accept()[0])
            if hung_up:
                assert other.stdin is not None
                other.stdin.write(b"\n")
                other.stdin.flush()
                assert select.select([channel.fd], [], [], 10)[0]
            channel.kill_peer()
            other.communicate(b"\n")
            assert other.returncode == (0 if hung_up else -signal.SIGKILL), "its number may be another's by now"
            channel.close()
