"""A whole server with TLS: curl and the official gRPC client, certificates of clients, a new one of the server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, certificates
from tests.frontend.http2.service import grpc

pytestmark = pytest.mark.skipif(
    not HAS_OPENSSL or shutil.which("curl") is None, reason="made with openssl, called with curl"
)

PREDICT = "/v1/models/half:predict"


class Kit:
    """Files of certificates in a folder, and clients that use them."""

    def __init__(self, folder: Path) -> None:
        self.certs: Certificates = certificates()
        self.folder = folder
        for name in ("authority", "server", "client", "stranger"):
            self.write(name, name)

    def write(self, name: str, pair_name: str) -> None:
        """The files of `name` become those of that pair."""
        pair = getattr(self.certs, pair_name)
        self.cert(name).write_text(pair.cert)
        self.key(name).write_text(pair.key)

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def flags(self, **more: str) -> list[str]:
        given = {"tls_cert_file": str(self.cert("server")), "tls_key_file": str(self.key("server"))} | more
        return [f"--{name}={value}" for name, value in given.items()]

    def curl(self, url: str, *options: str, own: str = "", ca: str = "authority") -> Any:
        """The JSON of an answer; None when TLS came to nothing."""
        command = ["curl", "-sS", "--max-time", "30", "--cacert", str(self.cert(ca)), *options]
        if own:
            command += ["--cert", str(self.cert(own)), "--key", str(self.key(own))]
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def channel(self, target: str, own: str = "", ca: str = "authority") -> Any:
        pair = getattr(self.certs, own) if own else None
        credentials = grpc.ssl_channel_credentials(
            getattr(self.certs, ca).cert.encode(),
            pair.key.encode() if pair else None,
            pair.cert.encode() if pair else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
        return grpc.secure_channel(target, credentials, options=options)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def predict(channel: Any) -> list[float]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    answer = stub.Predict(make_request("half", x=[2.0, 4.0]), timeout=60, wait_for_ready=True)
    found: list[float] = outputs_of(answer)["y"].tolist()
    return found


def url_of(server: Server, path: str) -> str:
    port = urllib.parse.urlsplit(server.rest_url).port
    return f"https://localhost:{port}{path}"


def wait_served(server: Server, kit: Kit, **how: str) -> None:
    wait_until(
        lambda: (
            "AVAILABLE" in json.dumps(kit.curl(url_of(server, "/v1/models/half"), **how) or {})
            or server.process.poll() is not None
        ),
        "the model",
    )


@pytest.mark.parametrize("engine", ["native", "grpcio"])
def test_both_ports_with_certificates_of_clients_and_one_that_is_replaced(
    kit: Kit, models: Path, engine: str
) -> None:
    body = json.dumps({"instances": [2.0, 4.0]})
    flags = kit.flags(tls_client_ca_file=str(kit.cert("authority")), tls_client_verify="required", tls_check_ms="50")
    model = ["--model_name=half", f"--model_base_path={models / 'half'}", "--frontends=2", f"--grpc_engine={engine}"]
    with Server(kit.folder, *flags, *model) as server:
        wait_served(server, kit, own="client")
        url, target = url_of(server, PREDICT), server.grpc_target.replace("127.0.0.1", "localhost")
        assert kit.curl(url, "-d", body, own="client") == {"predictions": [3.0, 4.0]}
        assert kit.curl(url, "-d", body) is None
        assert kit.curl(url, "-d", body, own="stranger") is None
        assert kit.curl(url.replace("https", "http"), "-d", body) is None
        with kit.channel(target, own="client") as channel:
            assert predict(channel) == [3.0, 4.0]
            with kit.channel(target) as anonymous, pytest.raises(grpc.RpcError):
                prediction_service_pb2_grpc.PredictionServiceStub(anonymous).Predict(
                    make_request("half", x=[2.0]), timeout=20
                )
            _replace_while_called(server, kit, channel, target, url, body)


def _replace_while_called(server: Server, kit: Kit, channel: Any, target: str, url: str, body: str) -> None:
    """Calls on one connection go on while the certificate is replaced; new connections are shown the new one."""
    is_over, answers = threading.Event(), []

    def call() -> None:
        while not is_over.is_set():
            answers.append(predict(channel))

    thread = threading.Thread(target=call)
    thread.start()
    kit.cert("server").write_text(kit.certs.stranger.cert)
    wait_until(lambda: server.log.count("the key is not the one of the certificate") == 2, "both frontends to complain")
    assert kit.curl(url, "-d", body, own="client") == {"predictions": [3.0, 4.0]}
    kit.write("server", "stranger")
    wait_until(lambda: server.log.count("a new certificate or key is used") == 2, "both frontends to take it")
    assert kit.curl(url, "-d", body, own="client") is None
    assert kit.curl(url, "-d", body, own="client", ca="stranger") == {"predictions": [3.0, 4.0]}
    with kit.channel(target, own="client", ca="stranger") as fresh:
        assert predict(fresh) == [3.0, 4.0]
    count = len(answers)
    wait_until(lambda: len(answers) > count + 3, "calls on the old connection")
    is_over.set()
    thread.join(60)
    assert all(answer == [3.0, 4.0] for answer in answers)


def test_a_start_without_a_right_key_says_so(kit: Kit, models: Path) -> None:
    flags = kit.flags(tls_key_file=str(kit.key("client")))
    done = subprocess.run(
        [sys.executable, "-m", "ringserve", "serve", f"--model_base_path={models / 'half'}", *flags],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert "the key is not the one of the certificate" in done.stderr
    assert "client.key" in done.stderr
