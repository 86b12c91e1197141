"""Settings of TLS, ports and access: what does not fit together is refused, what is probably not meant is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ringserve.config import limits
from ringserve.config.access import Access
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.schema import Model, Server, Settings

_FILES: dict[str, Any] = {"tls_cert_file": "/c", "tls_key_file": "/k"}
_CA: dict[str, Any] = {"tls_client_ca_file": "/a"}


def settings_of(*, access: Access | None = None, **server: Any) -> Settings:
    return Settings(Server(**server), access=access or Access(), models=(Model("m", "/"),))


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ({"tls_cert_file": "/c"}, "tls_cert_file without tls_key_file: TLS needs both"),
        ({"tls_key_file": "/k"}, "tls_key_file without tls_cert_file: TLS needs both"),
        ({"ssl_config_file": "/s", **_FILES}, "are both about gRPC"),
        ({"tls_client_verify": "required", **_FILES}, "no tls_client_ca_file says whom to trust"),
        ({"tls_client_verify": "required", **_CA}, "there is no tls_cert_file"),
        ({**_CA, **_FILES}, "nobody would be verified"),
        ({"tls_client_crl_file": "/c", **_FILES}, "tls_client_crl_file is given, and tls_client_verify is none"),
        (
            {"tls_client_verify": "required", "tls_client_crl_file": "/c", "grpc_engine": "grpcio", **_CA, **_FILES},
            "the engine grpcio knows no such lists",
        ),
        (
            {"tls_client_verify": "optional", "grpc_engine": "grpcio", **_CA, **_FILES},
            "the engine grpcio knows no optional certificates",
        ),
        ({"admin_socket_path": "/" + "x" * 107}, "admin_socket_path is longer than 107 bytes"),
        ({"admin_socket_path": "/s", "grpc_socket_path": "/s"}, "gRPC and operators need a socket each"),
        ({"admin_port": 8500}, "port and admin_port are both 8500"),
        ({"metrics_port": 8501}, "rest_api_port and metrics_port are both 8501"),
        ({"metrics_port": 9, "admin_port": 9}, "admin_port and metrics_port are both 9"),
        ({"admin_host": ""}, "admin_host is empty"),
    ],
)
def test_what_does_not_fit(server: dict[str, Any], expected: str) -> None:
    (broken,) = limits.mistakes(settings_of(**server))
    assert expected in broken.text
    assert set(server) & set(broken.keys)


@pytest.mark.parametrize(
    "server",
    [
        _FILES,
        {"ssl_config_file": "/s", "tls_ports": "rest", **_FILES},
        {"tls_client_verify": "required", **_CA, **_FILES},
        {"tls_client_verify": "optional", "grpc_engine": "grpcio", "tls_ports": "rest", **_CA, **_FILES},
        {"admin_port": -1, "metrics_port": -1, "rest_api_port": -1},
        {"metrics_port": 8502, "admin_port": 8503},
    ],
)
def test_what_fits(server: dict[str, Any]) -> None:
    assert limits.mistakes(settings_of(**server)) == []


_KEYS = Access(keys_file="/keys")


@pytest.mark.parametrize(
    ("server", "access", "said"),
    [
        ({}, None, ["ask every model at 0.0.0.0", "replace the models over gRPC"]),
        ({"host": "::"}, None, ["ask every model at ::"]),
        ({"grpc_admin": "off"}, None, ["ask every model at 0.0.0.0"]),
        ({"rest_admin": "all"}, None, ["change the models over REST"]),
        ({"host": "127.0.0.1"}, None, []),
        ({"host": "::1"}, None, []),
        ({"host": "localhost"}, None, []),
        ({"host": "127.0.0.1", "admin_port": 1, "admin_host": "10.0.0.1"}, None, ["change the models at 10.0.0.1"]),
        ({"host": "127.0.0.1", "admin_port": 1}, None, []),
        ({}, _KEYS, []),
        ({"tls_client_verify": "required", **_CA, **_FILES}, None, []),
        ({"tls_client_verify": "optional", **_CA, **_FILES}, None, ["ask every model"]),
    ],
)
def test_a_server_open_to_all_is_said_loudly_in_one_line(
    server: dict[str, Any], access: Access | None, said: list[str]
) -> None:
    warnings = limits.warnings(settings_of(access=access, **server))
    assert len(warnings) == (1 if said else 0)
    for text in said:
        assert text in warnings[0]
        assert warnings[0].startswith("NO ACCESS CONTROL")
    if server.get("grpc_admin") == "off":
        assert "over gRPC" not in warnings[0]


def test_files_that_others_can_read_or_change_are_said(tmp_path: Path) -> None:
    key, keys = tmp_path / "key", tmp_path / "keys"
    for path in (key, keys):
        path.touch()
    settings = settings_of(tls_key_file=str(key), access=Access(keys_file=str(keys)))
    for mode, said in ((0o600, []), (0o640, []), (0o644, ["key"]), (0o660, ["key", "keys"])):
        key.chmod(mode)
        keys.chmod(mode)
        found = limits.warnings(settings)
        assert [line.split()[1] for line in found] == [str(tmp_path / name) for name in said]


def test_a_unix_socket_alone_is_open_to_nobody() -> None:
    settings = settings_of(port=-1, rest_api_port=0, grpc_socket_path="/s")
    assert limits.warnings(settings) == []
    assert limits.warnings(replace(settings, server=replace(settings.server, port=0))) != []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[keys]]\nname='a'\n", "keys_file: .*key 1 .a. must have either a sha256"),
        ("nonsense", "keys_file: .*not a TOML file"),
        (None, "keys_file: .*No such file"),
    ],
)
def test_a_start_with_an_unusable_file_of_keys_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "keys.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_settings({"model_base_path": "/m", "keys_file": str(path)}, {}, None)


@pytest.mark.parametrize(
    ("anonymous", "expected"), [("predict:x", "there is no keys_file"), ("all", "anonymous: 'all' is no scope")]
)
def test_anonymous_scopes(anonymous: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_settings({"model_base_path": "/m", "anonymous": anonymous}, {}, None)


def test_a_relative_file_of_keys_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.toml").touch()
    found = load_settings({"model_base_path": "/m", "keys_file": "keys.toml"}, {}, None)
    assert found.access.keys_file == str(tmp_path / "keys.toml")
