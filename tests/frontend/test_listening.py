"""Goal: clients of a killed frontend that come back at once are refused, or served by another, and never connected to
what is dead. Method: a real process is killed with 200 connections open, each of which is made anew when it is closed.
"""

from __future__ import annotations

import resource
import select
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from ringserve.frontend.listening import listen

_CONNECTIONS = 200
_TRIALS = 5
_SERVER = f"""
import time
from ringserve.frontend.listening import listen
listener = listen("127.0.0.1", 0)
listener.setblocking(True)
print(listener.getsockname()[1], flush=True)
held = [listener.accept() for _ in range({_CONNECTIONS})]
print("all", flush=True)
time.sleep(60)
"""


def test_its_number_is_above_those_of_connections() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", 0) as second:
        assert min(soft, 16_384) - 64 <= first.fileno() < second.fileno() < soft
        assert not first.get_inheritable()
        assert not first.getblocking()
        with socket.create_connection(first.getsockname()) as client:
            first.settimeout(20)
            connection, _ = first.accept()
            with connection:
                assert connection.fileno() < first.fileno()
                assert connection.getpeername() == client.getsockname()


def _come_back() -> Counter[str]:
    """How new connections to a process that is being killed end."""
    command = [sys.executable, "-c", _SERVER]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        address = ("127.0.0.1", int(server.stdout.readline()))
        opened = [socket.create_connection(address) for _ in range(_CONNECTIONS)]
        clients = {client.fileno(): client for client in opened}
        assert server.stdout.readline() == "all\n"
        poll = select.poll()
        for number in clients:
            poll.register(number, select.POLLIN)
        server.kill()
        ends: Counter[str] = Counter()
        again = []
        while clients:
            for number, _ in poll.poll(20_000):
                poll.unregister(number)
                again.append(clients.pop(number))  # stays open, so that its number is not given to another
                attempt = socket.socket()
                try:
                    attempt.connect(address)
                except ConnectionRefusedError:
                    ends["refused"] += 1
                    attempt.close()
                else:
                    ends["connected"] += 1
                    again.append(attempt)
        for each in again:
            each.close()
    return ends


def test_who_comes_back_to_a_killed_process_is_not_connected_to_it() -> None:
    assert sum((_come_back() for _ in range(_TRIALS)), Counter[str]()) == {"refused": _CONNECTIONS * _TRIALS}
