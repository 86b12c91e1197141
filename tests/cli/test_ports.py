"""Ports are found free, then held for frontends that share them."""

from __future__ import annotations

import socket

import pytest

from ringserve.ports import PortError, hold


def _shared(port: int) -> socket.socket:
    """What a frontend does."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


@pytest.mark.parametrize("wanted", [0, -1])
def test_a_free_port_is_picked(wanted: int) -> None:
    held = hold("127.0.0.1", wanted, "port")
    assert held.port > 0
    held.placeholder.close()


def test_a_held_port_is_ours_and_takes_no_connection() -> None:
    port, placeholder = hold("127.0.0.1", 0, "port")
    with placeholder:
        with pytest.raises(PortError, match=f"--port: port {port} of 127.0.0.1 is in use"):
            hold("127.0.0.1", port, "port")
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", port))
        with _shared(port) as first, _shared(port) as second:
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
            accepted = 0
            for listener in (first, second):
                listener.setblocking(False)
                while True:
                    try:
                        listener.accept()[0].close()
                    except BlockingIOError:
                        break
                    accepted += 1
            for client in clients:
                client.close()
            assert accepted == 20


def test_a_port_of_closed_connections_can_be_had_again() -> None:
    """TIME_WAIT, left by the side that closes first."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    held = hold("127.0.0.1", port, "port")
    assert held.port == port
    held.placeholder.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(PortError, match="this machine has no such address: see --host"):
        hold("192.0.2.1", 0, "port")
