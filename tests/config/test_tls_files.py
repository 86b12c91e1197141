"""TLS from PEM files: what cannot be used is refused with the setting's name; until when a certificate is valid."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from ringserve.config.tls import ModelConfigError, Source, read_source
from ringserve.config.x509_dates import validity
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, certificates

pytestmark = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")


@pytest.fixture
def certs() -> Certificates:
    return certificates()


def test_files_that_cannot_be_used(certs: Certificates, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    cert, key, ca = (str(tmp_path / name) for name in ("tls.crt", "tls.key", "ca.crt"))
    Path(cert).write_text(certs.server.cert)
    Path(key).write_text(certs.server.key)
    other = tmp_path / "other"
    other.write_text(certs.stranger.key)
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff\x00")
    Path(ca).write_text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    for source, expected in (
        (Source("", nowhere, key), "tls_cert_file: .*nowhere: No such file"),
        (Source("", cert, nowhere), "tls_key_file: .*nowhere: No such file"),
        (Source("", cert, str(other)), "tls_key_file .*other and tls_cert_file .* the key is not the one"),
        (Source("", key, key), "tls_cert_file: .* holds no PEM text of a certificate"),
        (Source("", cert, cert), "tls_key_file: .* holds no PEM text of a private key"),
        (Source("", cert, str(junk)), "tls_key_file: .* is not PEM text"),
        (Source("", cert, str(tmp_path)), "tls_key_file: .* Is a directory"),
        (Source("", cert, key, nowhere, "required"), "tls_client_ca_file: .*nowhere: No such file"),
        (Source("", cert, key, ca, "optional"), "tls_client_ca_file: .* cannot be used"),
    ):
        with pytest.raises(ModelConfigError, match=expected):
            read_source(source)


def test_the_dates_of_a_certificate(certs: Certificates) -> None:
    for pair in certs:
        found = validity(pair.cert)
        dates = subprocess.run(
            ["openssl", "x509", "-noout", "-dates"], input=pair.cert, capture_output=True, text=True, check=True
        ).stdout
        begin, end = (line.partition("=")[2] for line in dates.splitlines())
        assert found == (ssl.cert_time_to_seconds(begin), ssl.cert_time_to_seconds(end))
    chain = certs.client.cert + certs.authority.cert
    assert validity(chain) == validity(certs.client.cert)


@pytest.mark.parametrize("days", ["1", "20000"])
def test_the_dates_of_this_and_of_the_next_half_century(tmp_path: Path, days: str) -> None:
    cert = tmp_path / "c"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-days", days, "-keyout", tmp_path / "k", "-out", cert, "-subj", "/CN=x"],
        check=True, capture_output=True,
    )  # fmt: skip
    found = validity(cert.read_text())
    assert found is not None
    assert found.end_s - found.begin_s == int(days) * 86_400


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_has_no_dates(text: str) -> None:
    assert validity(text) is None
