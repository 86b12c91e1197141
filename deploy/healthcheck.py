#!/usr/local/bin/python3 -ISE
"""The image's health check: exit status 0 when the server in this container is ready for requests, 1 when it is not.

    ringserve-healthcheck [/readyz | /readyz/MODEL | /healthz]

It asks on the operators' UNIX socket, which is there whatever ports, certificates and keys are set. Only the standard
library is used: this runs every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys

_TIMEOUT_S = 4.0


def ask(socket_path: str, path: str) -> tuple[int, str]:
    """(HTTP status, text) of a GET. Raises OSError, or ValueError for what is no HTTP."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(socket_path)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body.decode(errors="replace").strip()


def main(arguments: list[str]) -> int:
    """The exit status; what was found goes to standard output, where `docker inspect` shows it."""
    run_dir = os.environ.get("RINGSERVE_RUN_DIR") or "/tmp/ringserve"
    socket_path = os.environ.get("RINGSERVE_ADMIN_SOCKET_PATH") or os.path.join(run_dir, "admin.sock")
    try:
        status, text = ask(socket_path, arguments[0] if arguments else "/readyz")
    except (OSError, ValueError, IndexError) as error:
        print(f"no answer at {socket_path}: {error}")
        return 1
    print(text)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
