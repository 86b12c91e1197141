"""Goal: a client whose certificate is in a list of revoked ones is refused, others are not. Method: lists by openssl,
and handshakes in memory, without sockets.
"""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from ringserve.config.tls import ModelConfigError, Source, read_source, server_context
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, Pair, certificates

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")

_CONFIG = """[ca]
default_ca = own
[own]
database = index
default_md = sha256
policy = any
[any]
commonName = optional
"""


@pytest.fixture(scope="module")
def certs() -> Certificates:
    return certificates()


@pytest.fixture(scope="module")
def folder(certs: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEM files: `revoked` has the client's certificate, `none` is empty, `ended` was to be renewed long ago."""
    folder = tmp_path_factory.mktemp("revoked")
    for name, text in (
        ("ca.crt", certs.authority.cert), ("ca.key", certs.authority.key), ("tls.crt", certs.server.cert),
        ("tls.key", certs.server.key), ("client.crt", certs.client.cert), ("ca.cnf", _CONFIG), ("index", ""),
    ):  # fmt: skip
        (folder / name).write_text(text)

    def ca(*arguments: str) -> None:
        command = ["openssl", "ca", "-config", "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    ca("-gencrl", "-crldays", "1", "-out", "none")
    ca("-gencrl", "-crl_lastupdate", "20200101000000Z", "-crl_nextupdate", "20200102000000Z", "-out", "ended")
    ca("-revoke", "client.crt")
    ca("-gencrl", "-crldays", "1", "-out", "revoked")
    return folder


def source(folder: Path, crl: str, verify: str = "required") -> Source:
    cert, key, ca = (str(folder / name) for name in ("tls.crt", "tls.key", "ca.crt"))
    return Source("", cert, key, ca, verify, str(folder / crl) if crl else "")


def is_let_in(folder: Path, crl: str, own: Pair | None, certs: Certificates, verify: str = "required") -> bool:
    """Whether a handshake with this client's certificate comes to its end."""
    server = server_context(read_source(source(folder, crl, verify)))
    client = ssl.create_default_context(cadata=certs.authority.cert)
    client.check_hostname = False
    if own is not None:
        (folder / "own").write_text(own.cert + own.key)
        client.load_cert_chain(folder / "own")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(to_server, to_client, server_side=True), client.wrap_bio(to_client, to_server)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return ends[0].version() is not None


def test_who_is_revoked_is_refused_and_nobody_else(folder: Path, certs: Certificates) -> None:
    assert is_let_in(folder, "", certs.client, certs)
    assert is_let_in(folder, "none", certs.client, certs)
    assert not is_let_in(folder, "revoked", certs.client, certs)
    assert is_let_in(folder, "revoked", certs.server, certs)
    assert not is_let_in(folder, "revoked", certs.stranger, certs)


def test_who_need_not_show_a_certificate_must_not_show_a_revoked_one(folder: Path, certs: Certificates) -> None:
    assert is_let_in(folder, "revoked", None, certs, "optional")
    assert not is_let_in(folder, "revoked", certs.client, certs, "optional")


def test_a_list_that_has_ended_lets_nobody_in(folder: Path, certs: Certificates) -> None:
    """It cannot be told from one that an attacker keeps from being renewed."""
    assert not is_let_in(folder, "ended", certs.server, certs)


def test_a_new_list_makes_a_new_configuration(folder: Path) -> None:
    """Which is what the keeper of certificates looks at."""
    assert read_source(source(folder, "none")) != read_source(source(folder, "revoked"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no PEM text of a x509 crl"),
        ("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", "cannot be used"),
        ("-----BEGIN X509 CRL-----\n", "cannot be used"),
    ],
)
def test_what_is_no_list_is_said_so(folder: Path, text: str, expected: str) -> None:
    (folder / "junk").write_text(text)
    with pytest.raises(ModelConfigError, match=f"tls_client_crl_file: .*junk.* {expected}"):
        read_source(source(folder, "junk"))
