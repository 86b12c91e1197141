"""Which server `ringserve predict` asks: the command line counts before the environment, and one of the two at most."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ringserve.cli import main
from ringserve.commands.console import Status

# Nobody answers at either, and what is said then tells which was asked.
REST, GRPC = "http://127.0.0.1:1", "127.0.0.1:2"
BY_REST, BY_GRPC = f"nobody answers at {REST}", f"{GRPC}: UNAVAILABLE"


@pytest.mark.parametrize(
    ("given", "environment", "asked"),
    [
        (["--url", REST], {}, BY_REST),
        (["--url", REST], {"RINGSERVE_GRPC": GRPC}, BY_REST),
        (["--url", REST], {"RINGSERVE_GRPC": GRPC, "RINGSERVE_URL": "http://elsewhere:1"}, BY_REST),
        (["--grpc", GRPC], {"RINGSERVE_URL": REST}, BY_GRPC),
        (["--grpc", GRPC], {"RINGSERVE_GRPC": "elsewhere:1"}, BY_GRPC),
        ([], {"RINGSERVE_URL": REST, "RINGSERVE_GRPC": GRPC}, BY_GRPC),
        ([], {"RINGSERVE_URL": REST}, BY_REST),
    ],
)
def test_who_is_asked(given: list[str], environment: dict[str, str], asked: str) -> None:
    done = CliRunner().invoke(main, ["predict", "m", "[1]", "--timeout", "5", *given], env=environment)
    assert done.exit_code == Status.UNREACHABLE
    assert asked in done.output


def test_two_servers_cannot_be_asked() -> None:
    done = CliRunner().invoke(main, ["predict", "m", "[1]", "--url", REST, "--grpc", GRPC])
    assert done.exit_code == Status.USAGE
    assert "--url and --grpc exclude each other" in done.output


def test_what_is_for_grpc_is_refused_with_an_address_for_rest() -> None:
    done = CliRunner().invoke(
        main, ["predict", "m", "[1]", "--url", REST, "--outputs", "y"], env={"RINGSERVE_GRPC": GRPC}
    )
    assert done.exit_code == Status.USAGE
    assert "--outputs and --tls_ca are for gRPC" in done.output
