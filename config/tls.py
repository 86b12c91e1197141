"""TF Serving's SSLConfig file: the PEM texts that gRPC's TLS is made of, found sound before anything starts."""

from __future__ import annotations

import os
import ssl
from typing import Any, NamedTuple

from ringserve.config.config_protos import SSLConfig
from ringserve.config.text_protos import ModelConfigError as ModelConfigError
from ringserve.config.text_protos import invalid, parse_text, read_message


class SslConfig(NamedTuple):
    """key, cert: the server's, as PEM text (cert: its chain, the server's own first). ca: PEM text of the certificates
    that clients' are verified with, empty for the system's. client_verify: a client must show one (mTLS)."""

    key: str
    cert: str
    ca: str
    client_verify: bool


def read_ssl_config(path: str) -> SslConfig:
    """The SSLConfig (text format) in that file. Raises ModelConfigError when it cannot be read or used."""
    message: Any = read_message(path, lambda text: parse_text(text, SSLConfig))
    config = SslConfig(message.server_key, message.server_cert, message.custom_ca, message.client_verify)
    for name, text in (("server_key", config.key), ("server_cert", config.cert)):
        if "-----BEGIN " not in text:
            raise invalid(f"{path}: {name} is not PEM text (it holds the text itself, not the name of a file)")
    try:
        server_context(config)
    except (ssl.SSLError, ValueError) as error:
        raise invalid(f"{path}: server_key, server_cert or custom_ca cannot be used: {error}") from error
    return config


def server_context(config: SslConfig) -> ssl.SSLContext:
    """A server's context with these texts, for HTTP/2 (ALPN `h2`). Raises ssl.SSLError for texts that do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    # OpenSSL's Python wrapper reads keys from files only; this one never has a name, nor touches a disk.
    fd = os.memfd_create("ringserve-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, f"{config.cert}\n{config.key}\n".encode())
        # Without a password to try, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    finally:
        os.close(fd)
    if config.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
        if config.ca:
            context.load_verify_locations(cadata=config.ca)
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    return context
