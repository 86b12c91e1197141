"""TLS: the PEM texts that it is made of, from an SSLConfig or from files, found sound before anything starts."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from ringserve.config.config_protos import SSLConfig
from ringserve.config.regular_file import regular_only
from ringserve.config.schema import Server
from ringserve.config.text_protos import ModelConfigError as ModelConfigError
from ringserve.config.text_protos import invalid, parse_text, read_message

#: For TLS 1.2: a fresh key for every connection, and encryption that authenticates. All of TLS 1.3's are so.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

GRPC_ALPN: Final = "h2"
REST_ALPN: Final = "http/1.1"

#: What OpenSSL says of a key and a certificate that are not one pair.
_MISMATCH: Final = "KEY_VALUES_MISMATCH"
_FILE_BYTES_MAX: Final = 4 * 2**20


class SslConfig(NamedTuple):
    """key, cert: the server's, as PEM text (cert: its chain, the server's own first). ca: PEM text of the certificates
    that clients' are verified with, empty for the system's. client_verify: a client must show one (mTLS), or, if
    `is_optional`, may. crl: PEM text of the lists of clients' certificates that are revoked, empty for none."""

    key: str
    cert: str
    ca: str
    client_verify: bool
    is_optional: bool = False
    crl: str = ""


class Source(NamedTuple):
    """Where the texts are: in an SSLConfig's file, or in one file each. client_verify: as `tls_client_verify`."""

    ssl_config_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_verify: str = "none"
    client_crl_file: str = ""


def source_of_grpc(server: Server) -> Source | None:
    """What gRPC's TLS is made of; None without TLS."""
    if server.ssl_config_file:
        return Source(ssl_config_file=server.ssl_config_file)
    return source_of_files(server) if server.tls_cert_file and server.tls_ports != "rest" else None


def source_of_rest(server: Server) -> Source | None:
    """What REST's TLS is made of; None without TLS. An SSLConfig is about gRPC only, as in TF Serving."""
    return source_of_files(server) if server.tls_cert_file and server.tls_ports != "grpc" else None


def source_of_files(server: Server) -> Source:
    """The files that `tls_cert_file` and its like name."""
    files = (server.tls_cert_file, server.tls_key_file, server.tls_client_ca_file)
    return Source("", *files, server.tls_client_verify, server.tls_client_crl_file)


def read_source(source: Source) -> SslConfig:
    """The texts, which fit each other. Raises ModelConfigError when they cannot be read or used."""
    return read_ssl_config(source.ssl_config_file) if source.ssl_config_file else read_pem_files(source)


def read_ssl_config(path: str) -> SslConfig:
    """The SSLConfig (text format) in that file. Raises ModelConfigError when it cannot be read or used."""
    message: Any = read_message(path, lambda text: parse_text(text, SSLConfig))
    config = SslConfig(message.server_key, message.server_cert, message.custom_ca, message.client_verify)
    for name, text in (("server_key", config.key), ("server_cert", config.cert)):
        if "-----BEGIN " not in text:
            raise invalid(f"{path}: {name} is not PEM text (it holds the text itself, not the name of a file)")
    _check(config, f"{path}: server_key, server_cert or custom_ca")
    return config


def read_pem_files(source: Source) -> SslConfig:
    """The texts in the files that are named. Raises ModelConfigError, which names the setting that is wrong."""
    key = _pem("tls_key_file", source.key_file, "PRIVATE KEY-----")
    cert = _pem("tls_cert_file", source.cert_file, "CERTIFICATE-----")
    verify = source.client_verify
    ca = _pem("tls_client_ca_file", source.client_ca_file, "CERTIFICATE-----") if verify != "none" else ""
    crl = _pem("tls_client_crl_file", source.client_crl_file, "X509 CRL-----") if source.client_crl_file else ""
    config = SslConfig(key, cert, ca, verify != "none", verify == "optional", crl)
    if ca:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=ca)
        except (ssl.SSLError, ValueError) as error:
            raise invalid(f"tls_client_ca_file: {source.client_ca_file} cannot be used: {error}") from error
    if crl:
        try:
            _load_revoked(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), crl)
        except (ssl.SSLError, ValueError) as error:
            raise invalid(f"tls_client_crl_file: {source.client_crl_file} cannot be used: {error}") from error
    _check(config, f"tls_key_file {source.key_file} and tls_cert_file {source.cert_file}")
    return config


def _pem(setting: str, path: str, kind: str) -> str:
    try:
        with open(path, encoding="ascii", opener=regular_only) as file:
            text = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise invalid(f"{setting}: {path}: {error.strerror}") from error
    except ValueError as error:
        raise invalid(f"{setting}: {path} is not PEM text") from error
    if "-----BEGIN " not in text or kind not in text:
        raise invalid(f"{setting}: {path} holds no PEM text of a {kind.rstrip('-').lower()}")
    return text


def _check(config: SslConfig, what: str) -> None:
    try:
        server_context(config)
    except (ssl.SSLError, ValueError) as error:
        why = "the key is not the one of the certificate" if getattr(error, "reason", "") == _MISMATCH else str(error)
        raise invalid(f"{what} cannot be used: {why}") from error


def server_context(config: SslConfig, alpn: str = GRPC_ALPN) -> ssl.SSLContext:
    """A server's context with these texts, for one protocol. Raises ssl.SSLError for texts that do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # A client that negotiates anew again and again would have us do the costly half each time.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols([alpn])
    with _as_file(f"{config.cert}\n{config.key}\n") as path:
        # Without a password to try, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(path, password="")
    if config.client_verify:
        context.verify_mode = ssl.CERT_OPTIONAL if config.is_optional else ssl.CERT_REQUIRED
        # A resumed session is not verified again, even when its authority is not trusted any more.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        if config.ca:
            context.load_verify_locations(cadata=config.ca)
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        if config.crl:
            _load_revoked(context, config.crl)
    return context


def _load_revoked(context: ssl.SSLContext, crl: str) -> None:
    """Refuse the certificates in these lists. Raises ssl.SSLError."""
    before = context.cert_store_stats()["crl"]
    with _as_file(crl) as path:
        context.load_verify_locations(cafile=path)
    if context.cert_store_stats()["crl"] == before:
        raise ValueError("there is no list in it")
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Python's wrapper of OpenSSL reads some things from files only: this one never has a name, nor touches a disk."""
    fd = os.memfd_create("ringserve-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
