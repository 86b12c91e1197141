"""SSLConfig (spec 9): PEM texts, not paths; unusable ones are found before anything starts."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf import text_format

from ringserve.config.config_protos import SSLConfig
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.text_protos import ModelConfigError
from ringserve.config.tls import SslConfig, read_ssl_config, server_context

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


class Pair(NamedTuple):
    """A private key and its self-signed certificate, PEM texts; cert_path: the latter's file."""

    key: str
    cert: str
    cert_path: Path
    key_path: Path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    """Two pairs that do not fit each other, for localhost."""
    folder = tmp_path_factory.mktemp("tls")

    def make(name: str) -> Pair:
        key, cert = folder / f"{name}.key", folder / f"{name}.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            check=True, capture_output=True,
        )  # fmt: skip
        return Pair(key.read_text(), cert.read_text(), cert, key)

    return make("a"), make("b")


def _write(path: Path, config: SslConfig) -> str:
    message = SSLConfig(
        server_key=config.key, server_cert=config.cert, custom_ca=config.ca, client_verify=config.client_verify
    )
    path.write_text(text_format.MessageToString(message))
    return str(path)


def test_9_texts_are_read(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    for ca, verify in (("", False), (pairs[1].cert, True)):
        config = SslConfig(pairs[0].key, pairs[0].cert, ca, verify)
        assert read_ssl_config(_write(tmp_path / "ssl", config)) == config


def test_9_what_cannot_be_used(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    first, second = pairs
    path = tmp_path / "ssl"
    for config, expected in (
        (SslConfig(first.key, second.cert, "", False), "cannot be used"),
        (SslConfig(first.key.replace("M", "N"), first.cert, "", False), "cannot be used"),
        (SslConfig(first.key, first.cert, "nonsense", True), "cannot be used"),
        (SslConfig(str(first.key_path), first.cert, "", False), "server_key is not PEM text"),
        (SslConfig(first.key, "", "", False), "server_cert is not PEM text"),
    ):
        with pytest.raises(ModelConfigError, match=expected):
            read_ssl_config(_write(path, config))
    path.write_text("server_kay: 'x'")
    with pytest.raises(ModelConfigError, match="Invalid protobuf file"):
        read_ssl_config(str(path))


def test_an_encrypted_key_is_refused_without_a_question(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    secret = tmp_path / "secret.key"
    subprocess.run(
        ["openssl", "pkey", "-in", pairs[0].key_path, "-aes256", "-passout", "pass:word", "-out", secret],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ModelConfigError, match="cannot be used"):
        read_ssl_config(_write(tmp_path / "ssl", SslConfig(secret.read_text(), pairs[0].cert, "", False)))


def test_9_a_start_with_an_unusable_file_is_refused(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    path = _write(tmp_path / "ssl", SslConfig(pairs[0].key, pairs[1].cert, "", False))
    with pytest.raises(ConfigError, match=r"ssl_config_file: .* cannot be used"):
        load_settings({"model_base_path": "/m", "ssl_config_file": path}, {}, None)
    path = _write(tmp_path / "ssl", SslConfig(pairs[0].key, pairs[0].cert, "", False))
    assert load_settings({"model_base_path": "/m", "ssl_config_file": path}, {}, None).server.ssl_config_file == path


@pytest.mark.parametrize("shows_certificate", [True, False])
def test_9_client_verify_rejects_clients_without_certificate(
    pairs: tuple[Pair, Pair], shows_certificate: bool
) -> None:
    server, client = pairs
    context = server_context(SslConfig(server.key, server.cert, client.cert, True))
    near, far = socket.socketpair()
    outcome: list[str | None] = []

    def serve() -> None:
        try:
            with context.wrap_socket(far, server_side=True) as wrapped:
                outcome.append(wrapped.selected_alpn_protocol())
                wrapped.sendall(b"x")
        except ssl.SSLError as error:
            outcome.append(error.reason)

    thread = threading.Thread(target=serve)
    thread.start()
    theirs = ssl.create_default_context(cafile=str(server.cert_path))
    theirs.set_alpn_protocols(["h2"])
    if shows_certificate:
        theirs.load_cert_chain(client.cert_path, client.key_path)
    try:
        with theirs.wrap_socket(near, server_hostname="localhost") as wrapped:
            wrapped.recv(1)
    except (ssl.SSLError, ConnectionError):
        assert not shows_certificate
    thread.join()
    assert outcome == ["h2" if shows_certificate else "PEER_DID_NOT_RETURN_A_CERTIFICATE"]
