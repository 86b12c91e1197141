"""How many connections the ports of a frontend may have, by how many descriptors there are."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ringserve.config.descriptors import Caps, Port, TooFewError, caps_of, raise_limit, shared_out
from ringserve.config.groups import Group
from ringserve.config.schema import Server, Settings, Workers

_OWN_AND_TWO_WORKERS = 144


def caps(files_max: int, connections_max: int = 10_000, *, encrypted: int = 0) -> Caps:
    return shared_out(files_max, connections_max, workers=2, clients=2, operators=1, encrypted=encrypted)


def test_where_there_are_enough_nothing_is_lowered() -> None:
    needed = _OWN_AND_TWO_WORKERS + 3 * 10_128
    assert caps(needed) == Caps(Port(10_000), Port(10_000), needed)
    lowered = caps(needed - 1)
    assert lowered.warning
    assert lowered.clients.connections_max == 10_000  # operators' port is the first that is given less
    assert lowered.operators.connections_max < 10_000


@pytest.mark.parametrize("encrypted", [0, 1, 2])
@pytest.mark.parametrize("connections_max", [1, 100, 300, 10_000])
@pytest.mark.parametrize("files_max", [192, 256, 1024, 4096, 20_000])
def test_all_ports_together_leave_a_frontend_what_it_needs(
    files_max: int, connections_max: int, encrypted: int
) -> None:
    found = caps(files_max, connections_max, encrypted=encrypted)
    clients, operators = found.clients, found.operators
    assert 2 * sum(clients) + sum(operators) + _OWN_AND_TWO_WORKERS <= files_max or not found.warning
    assert all(1 <= port.connections_max <= connections_max and port.told_max >= 0 for port in (clients, operators))
    assert bool(found.warning) == (found.needed > files_max)


def test_what_is_said_names_the_numbers() -> None:
    assert caps(1024).warning == (
        "a process may open 1024 files (RLIMIT_NOFILE), so that a frontend takes 309 connections of clients over each "
        "protocol and 42 on each port for operators, not 10000 (connections_max): that needs 30528 files"
    )


def test_too_few_are_refused() -> None:
    assert caps(192).clients.connections_max == 12
    with pytest.raises(TooFewError) as refused:
        caps(191)
    assert str(refused.value) == (
        "a process may open 191 files (RLIMIT_NOFILE); a frontend needs 192 to serve at all with 2 workers, and 30528 "
        "for connections_max 10000"
    )


def test_what_the_settings_ask_for_is_counted() -> None:
    settings = Settings(workers=Workers(workers=2), server=Server(connections_max=100))
    plain = caps_of(settings, 10**6).needed
    assert plain == _OWN_AND_TWO_WORKERS + 3 * 228

    def needed(**server: Any) -> int:
        return caps_of(replace(settings, server=replace(settings.server, **server)), 10**6).needed

    assert needed(rest_api_port=0) == plain - 228
    assert caps_of(replace(settings, server=Server(connections_max=100, rest_api_port=0)), 10**6, rest=True) == (
        caps_of(settings, 10**6)
    )
    assert needed(metrics_port=9000) == plain + 228
    assert needed(metrics_port=9000, admin_port=9001) == plain + 2 * 228
    encrypted: dict[str, Any] = {"tls_cert_file": "cert", "tls_key_file": "key"}
    assert needed(**encrypted) == plain + 2 * 512
    assert needed(**encrypted, admin_port=9001) == plain + 228 + 3 * 512
    assert needed(**encrypted, tls_ports="grpc") == plain + 512
    grown = replace(settings, groups=(Group("g", ("m",), workers=1, workers_max=4),))
    assert caps_of(grown, 10**6).needed == plain + 4 * 8


@pytest.fixture
def limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised(limit: tuple[int, int]) -> None:
    _, hard = limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
    assert raise_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
