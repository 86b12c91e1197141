"""A whole server with access control: keys that come and go, rates, certificates, the operators' own ways in."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from ringserve.config.protos import ModelServerConfig, ReloadConfigRequest
from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until
from tests.e2e.test_tls import Kit
from tests.frontend.http2.certificates import HAS_OPENSSL
from tests.frontend.http2.service import grpc

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="called with curl")

BODY = json.dumps({"instances": [2.0, 4.0]})
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


def new_key(path: Path, name: str, *options: str) -> str:
    """The token of a new key, made as operators make it."""
    command = [sys.executable, "-m", "ringserve", "keys", "new", name, "--file", str(path), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


class Asked:
    """One answer to curl. status: 0 when there was none."""

    def __init__(self, url: str, *options: str, token: str = "") -> None:
        command = ["curl", "-sS", "--max-time", "30", "-i", *options]
        if token:
            command += ["-H", f"Authorization: Bearer {token}"]
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=60)
        head, _, self.body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        self.status = int(head.split()[1]) if done.returncode == 0 else 0
        self.headers = dict(line.lower().split(": ", 1) for line in head.split("\n")[1:])


def predict(channel: Any, token: str = "") -> Any:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        answer = stub.Predict(make_request("half", x=[2.0, 4.0]), timeout=60, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name
    return outputs_of(answer)["y"].tolist()


class Guarded:
    """A server of one model with keys."""

    def __init__(self, folder: Path, models: Path, *arguments: str) -> None:
        self.keys = folder / "keys.toml"
        self.runs = new_key(self.keys, "runs", "--scope", "predict:half")
        self.looks = new_key(self.keys, "looks", "--scope", "status")
        self.operates = new_key(self.keys, "operates", "--scope", "admin")
        self.slow = new_key(self.keys, "slow", "--scope", "predict", "--rate", "0.01", "--burst", "20")
        model = ["--model_name=half", f"--model_base_path={models / 'half'}"]
        given = [f"--keys_file={self.keys}", "--keys_check_ms=50", "--frontends=2", *model, *arguments]
        self.server = Server(folder, *given)

    def wait(self) -> None:
        url = f"{self.server.rest_url}/v1/models/half"
        wait_until(lambda: "AVAILABLE" in Asked(url, token=self.looks).body, "the model")

    @property
    def admin_socket(self) -> str:
        return str(self.server.run_dir / "admin.sock")

    def port(self, what: str) -> str:
        found = re.search(rf"listening: .*{what} at (127\.0\.0\.1:\d+)", self.server.log)
        assert found is not None, self.server.log
        return found[1]


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    flags = ["--admin_port=-1", "--metrics_port=-1", "--metrics_host=127.0.0.1", "--rest_admin=off"]
    made = Guarded(tmp_path_factory.mktemp("guarded"), models, *flags)
    with made.server:
        made.wait()
        yield made


def test_rest(guarded: Guarded) -> None:
    url = f"{guarded.server.rest_url}/v1/models/half:predict"
    assert json.loads(Asked(url, "-d", BODY, token=guarded.runs).body) == {"predictions": [3.0, 4.0]}
    assert Asked(url, "-d", BODY).headers["www-authenticate"].startswith("bearer")
    found = [Asked(url, "-d", BODY, token=token).status for token in (guarded.looks, guarded.operates, "rs_wrong", "")]
    assert found == [403, 403, 401, 401]
    assert Asked(f"{guarded.server.rest_url}/healthz").status == 200
    assert Asked(f"{guarded.server.rest_url}/readyz").status == 200
    assert Asked(f"{guarded.server.rest_url}/metrics").status == 401
    assert Asked(f"{guarded.server.rest_url}/ringserve/v1/models", token=guarded.operates).status == 404


def test_grpc(guarded: Guarded) -> None:
    with grpc.insecure_channel(guarded.server.grpc_target) as channel:
        for _ in range(3):
            tokens = (guarded.runs, guarded.looks, guarded.operates, "wrong", "")
            assert [predict(channel, token) for token in tokens] == [
                [3.0, 4.0],
                *["PERMISSION_DENIED"] * 2,
                *["UNAUTHENTICATED"] * 2,
            ]


def test_keys_come_and_go(guarded: Guarded) -> None:
    url = f"{guarded.server.rest_url}/v1/models/half:predict"
    before = guarded.keys.read_text()
    token = new_key(guarded.keys, "late", "--scope", "predict:h*")
    wait_until(lambda: guarded.server.log.count("new: ['late']") == 2, "both frontends to know the key")
    assert Asked(url, "-d", BODY, token=token).status == 200
    guarded.keys.write_text("half a [[ke")
    wait_until(lambda: guarded.server.log.count("go on being used") == 2, "both frontends to complain")
    assert Asked(url, "-d", BODY, token=token).status == 200
    guarded.keys.write_text(before)
    wait_until(lambda: guarded.server.log.count("gone: ['late']") == 2, "both frontends to forget the key")
    assert Asked(url, "-d", BODY, token=token).status == 401
    assert Asked(url, "-d", BODY, token=guarded.runs).status == 200


def test_a_rate_holds_for_all_frontends_together(guarded: Guarded) -> None:
    def ask(number: int) -> Any:
        if number % 2:
            asked = Asked(f"{guarded.server.rest_url}/v1/models/half:predict", "-d", BODY, token=guarded.slow)
            assert asked.status == 200 or int(asked.headers["retry-after"]) > 50
            return asked.status == 200
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(guarded.server.grpc_target, options) as channel:
            answer = predict(channel, guarded.slow)
            assert answer in ([3.0, 4.0], "RESOURCE_EXHAUSTED")
            return answer == [3.0, 4.0]

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(ask, range(60))) in (20, 21)  # one more if the test takes 100 s


def test_the_operators_socket_needs_no_key_and_is_the_users_own(guarded: Guarded) -> None:
    assert stat.S_IMODE(os.stat(guarded.admin_socket).st_mode) == 0o600
    over = ("--unix-socket", guarded.admin_socket)
    listed = Asked("http://localhost/ringserve/v1/models", *over)
    assert "half" in listed.body
    assert Asked("http://localhost/v1/models/half", *over).status == 404
    assert "ringserve_access_refused_total" in Asked("http://localhost/metrics", *over).body
    json_type = ("-H", "Content-Type: application/json")
    assert Asked("http://localhost/ringserve/v1/rescan", "-d", "{}", *json_type, *over).status == 200
    expected = rf'admin: who="-" what="POST /ringserve/v1/rescan" from=unix:uid={os.getuid()},pid=\d+ outcome=200'
    wait_until(lambda: re.search(expected, guarded.server.log), "the audit's line")


def test_the_operators_port_needs_a_key(guarded: Guarded) -> None:
    url = f"http://{guarded.port('operators')}/ringserve/v1/models"
    assert [Asked(url, token=token).status for token in (guarded.operates, guarded.runs, "")] == [200, 403, 401]
    wait_until(
        lambda: re.search(
            r'admin: who="operates" what="GET /ringserve/v1/models" from=127\.0\.0\.1:\d+ outcome=200',
            guarded.server.log,
        ),
        "the audit's line",
    )


def test_the_port_of_metrics_shows_nothing_else(guarded: Guarded) -> None:
    base = f"http://{guarded.port('metrics')}"
    assert 'ringserve_access_refused_total{reason="missing"}' in Asked(f"{base}/metrics").body
    assert ":tensorflow:serving:request_count" in Asked(f"{base}/monitoring/prometheus/metrics").body
    assert Asked(f"{base}/healthz").status == 200
    for path in ("/v1/models/half", "/ringserve/v1/models"):
        assert Asked(f"{base}{path}").status == 404


def test_operators_over_grpc(guarded: Guarded) -> None:
    request = ReloadConfigRequest(config=ModelServerConfig(model_config_list={})).SerializeToString()
    with grpc.insecure_channel(guarded.server.grpc_target) as channel:
        for token, code in ((guarded.runs, "PERMISSION_DENIED"), ("", "UNAUTHENTICATED")):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(RELOAD)(request, timeout=30, metadata=[("authorization", f"Bearer {token}")])
            assert caught.value.code().name == code
        assert predict(channel, guarded.runs) == [3.0, 4.0]


def test_no_token_is_kept_or_logged(guarded: Guarded) -> None:
    for token in (guarded.runs, guarded.looks, guarded.operates, guarded.slow):
        assert token not in guarded.server.log
        assert token not in guarded.keys.read_text()
    assert "NO ACCESS CONTROL" not in guarded.server.log
    assert stat.S_IMODE(guarded.keys.stat().st_mode) == 0o600


@pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")
@pytest.mark.parametrize("engine", ["native", "grpcio"])
def test_certificates_as_keys(tmp_path: Path, models: Path, engine: str) -> None:
    kit = Kit(tmp_path)
    keys = tmp_path / "keys.toml"
    keys.write_text('[[keys]]\nname = "the client"\ncertificate = "cn:client"\nscopes = ["predict", "status"]\n')
    new_key(keys, "other", "--scope", "status")
    flags = kit.flags(
        tls_client_ca_file=str(kit.cert("authority")), tls_client_verify="required", keys_file=str(keys),
        grpc_engine=engine, model_name="half", model_base_path=str(models / "half"),
    )  # fmt: skip
    with Server(tmp_path, *flags) as server:
        rest = server.rest_url.replace("http://127.0.0.1", "https://localhost")
        wait_until(lambda: "AVAILABLE" in json.dumps(kit.curl(f"{rest}/v1/models/half", own="client")), "the model")
        url = f"{rest}/v1/models/half:predict"
        assert kit.curl(url, "-d", BODY, own="client") == {"predictions": [3.0, 4.0]}
        # `server` is another certificate of the same authority
        assert "no key was shown" in kit.curl(url, "-d", BODY, own="server")["error"]
        target = server.grpc_target.replace("127.0.0.1", "localhost")
        with kit.channel(target, own="client") as channel:
            assert predict(channel) == [3.0, 4.0]
            assert predict(channel, "wrong") == "UNAUTHENTICATED"
        with kit.channel(target, own="server") as channel:
            assert predict(channel) == "UNAUTHENTICATED"
