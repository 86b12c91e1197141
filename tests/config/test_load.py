"""Settings from flags, environment and file: who wins, what is refused, and how it is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ringserve.config import tls
from ringserve.config.load import ConfigError, load_settings
from ringserve.config.schema import MODEL_KEYS, Batching, Model, Settings
from ringserve.config.table import SETTINGS, Setting

_MODEL = {"model_base_path": "/models/m"}
_ROWS = {row.flag: row for row in SETTINGS}


def _mistakes(flags: dict[str, Any], environ: dict[str, str] | None = None, path: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, environ or {}, None if path is None else str(path))
    return caught.value.mistakes


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------------------------------------------------- precedence


def test_defaults_and_one_model_of_flags() -> None:
    settings = load_settings({"model_name": "m", **_MODEL}, {}, None)
    assert settings == Settings(models=(Model("m", "/models/m"),))


@pytest.mark.parametrize(
    ("flag", "environment", "expected"), [("1", "2", 1), (None, "2", 2), (None, None, 3)], ids=["flag", "env", "file"]
)
def test_flag_beats_environment_beats_file(
    tmp_path: Path, flag: str | None, environment: str | None, expected: int
) -> None:
    path = _file(tmp_path, "[server]\nport = 3\n")
    flags = _MODEL | ({"port": flag} if flag else {})
    environ = {"RINGSERVE_PORT": environment} if environment else {}
    assert load_settings(flags, environ, str(path)).server.port == expected


def test_defaults_of_a_command_lose_against_everything() -> None:
    assert load_settings(_MODEL, {}, None, defaults={"rest_api_port": 0}).server.rest_api_port == 0
    environ = {"RINGSERVE_REST_API_PORT": "77"}
    assert load_settings(_MODEL, environ, None, defaults={"rest_api_port": 0}).server.rest_api_port == 77


def _other_value(row: Setting) -> Any:
    """A right value that is not the default."""
    if row.choices:
        return next(choice for choice in row.choices if choice != row.default)
    if row.kind == "bool":
        return not row.default
    if row.kind == "str":
        others = {"devices": "cpu:1-3", "anonymous": "status", "endpoint": "http://127.0.0.1:4318/v1/traces"}
        others |= {"batch_rows_allowed": "1,8,128", "failures": "INTERNAL"}
        return others.get(row.key, "/tmp/x")
    if row.kind == "float":
        return 0.25
    return row.default + 2 if row.default < row.high else row.default - 1


#: Settings that name files, which are read at once.
_FILES = ("model_config_file", "ssl_config_file", "keys_file")


def _readable(folder: Path, key: str) -> Path:
    path = folder / key
    path.touch()
    return path


#: Settings that mean nothing alone, and what goes with them.
_FILES_OF_TLS = {"tls_cert_file": "/tmp/c", "tls_key_file": "/tmp/k"}
_COMPANIONS = {
    "tls_cert_file": _FILES_OF_TLS,
    "tls_key_file": _FILES_OF_TLS,
    "tls_client_crl_file": _FILES_OF_TLS | {"tls_client_verify": "required", "tls_client_ca_file": "/tmp/a"},
    "tls_client_ca_file": _FILES_OF_TLS | {"tls_client_verify": "required"},
    "tls_client_verify": _FILES_OF_TLS | {"tls_client_ca_file": "/tmp/a"},
    "anonymous": {"keys_file": "/dev/null"},
}


@pytest.fixture(autouse=True)
def any_file_is_an_ssl_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_tls.py has real ones."""
    monkeypatch.setattr(tls, "read_ssl_config", lambda path: None)
    monkeypatch.setattr(tls, "read_pem_files", lambda source: None)


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.flag)
def test_every_setting_by_every_way(tmp_path: Path, row: Setting) -> None:
    value = str(_readable(tmp_path, row.key)) if row.key in _FILES else _other_value(row)
    text = str(value).lower() if row.kind == "bool" else str(value)
    toml = f'"{value}"' if row.kind == "str" else text
    path = _file(tmp_path, f"[{row.section}]\n{row.key} = {toml}\n")
    for flags, environ, file in (
        ({row.flag: text}, {}, None),
        ({}, {row.environment: text}, None),
        ({}, {}, str(path)),
    ):
        companions = {flag: other for flag, other in _COMPANIONS.get(row.flag, {}).items() if flag != row.flag}
        settings = load_settings(_MODEL | companions | flags, environ, file)
        assert getattr(getattr(settings, row.section), row.key) == value


# ------------------------------------------------------------------------------------------------------------- models


def test_models_of_a_file_with_overrides(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        """
[batching]
batch_rows_max = 64
[[models]]
name = "a"
base_path = "/models/a"
[[models]]
name = "b"
base_path = "models/b"
versions = [3, 1, 3]
labels = { stable = 3, canary = 1 }
batching = { policy = "none" }
[[models]]
name = "c"
base_path = "/models/c"
versions = "latest:2"
""",
    )
    models = load_settings({}, {}, str(path)).models
    assert models == (
        Model("a", "/models/a", "latest", Batching(batch_rows_max=64)),
        Model(
            "b",
            os.path.abspath("models/b"),
            (1, 3),
            Batching(batch_rows_max=64, policy="none"),
            (("canary", 1), ("stable", 3)),
        ),
        Model("c", "/models/c", "latest:2", Batching(batch_rows_max=64)),
    )


def test_model_flags_replace_the_files_list(tmp_path: Path) -> None:
    path = _file(tmp_path, '[[models]]\nname = "a"\nbase_path = "/models/a"\n')
    settings = load_settings({"model_base_path": "/x", "batch_rows_max": "5"}, {"RINGSERVE_MODEL_NAME": "y"}, str(path))
    assert settings.models == (Model("y", "/x", batching=Batching(batch_rows_max=5)),)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("all", "all"), ("latest:2", "latest:2"), ("2,1", (1, 2)), ("specific { versions: 5 }", (5,)), ("", "latest")],
)
def test_versions_of_the_one_model(policy: str, expected: Any) -> None:
    assert load_settings(_MODEL | {"model_version_policy": policy}, {}, None).models[0].versions == expected
    assert load_settings(_MODEL, {"RINGSERVE_MODEL_VERSION_POLICY": policy}, None).models[0].versions == expected


_CONFIG = 'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" %s } }'


def test_models_of_a_model_config_file_take_the_place_of_the_one(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(_CONFIG % "batching { key: 'split' value: 'false' }")
    environ = {"RINGSERVE_MODEL_CONFIG_FILE": str(path), "RINGSERVE_MODEL_NAME": "x"}
    settings = load_settings({"batch_rows_max": "9"}, environ, None)
    assert settings.models == (Model("a", "/a", batching=Batching(batch_rows_max=9, split=False)),)
    settings = load_settings({"model_config_file": str(path), **_MODEL}, {}, None)
    assert [model.name for model in settings.models] == ["a"]


def test_a_model_config_file_keeps_its_place_for_processes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.config").touch()
    settings = load_settings({"model_config_file": "models.config"}, {}, None)
    assert settings.models == ()
    assert settings.lifecycle.model_config_file == f"{tmp_path}/models.config"


def test_mistakes_about_a_model_config_file(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    flags = {"model_config_file": str(path)}
    assert _mistakes(flags) == [f"model_config_file: {path}; No such file or directory"]
    path.write_text("nonsense")
    (mistake,) = _mistakes(flags)
    assert mistake.startswith(f"model_config_file: Invalid protobuf file: '{path}': Error parsing text-format ")
    path.write_text(_CONFIG % "logging_config {}")
    assert _mistakes(flags) == ["model_config_file: No request-logger-creator provided."]
    path.write_text("")
    toml = _file(tmp_path, '[[models]]\nname = "a"\nbase_path = "/a"\n')
    assert _mistakes(flags, path=toml) == ["model_config_file and [[models]] both list models: give one of them"]


def test_json_round_trip(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "[[models]]\nname = 'a'\nbase_path = '/a'\nversions = [1, 2]\nlabels = {x = 1}\nbatching = {split = false}\n",
    )
    settings = load_settings({"pin": "off"}, {}, str(path))
    assert Settings.from_json(settings.to_json()) == settings


# ----------------------------------------------------------------------------------------------------------- mistakes


def test_all_mistakes_at_once_with_their_places(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        """[server]
port = 99999
hots = "::1"
spread_us = 4
[[models]]
name = "a"
[[models]]
base_path = "/b"
nme = "b"
versions = "newest"
[models.batching]
batch_rows_max = "many"
[sever]
""",
    )
    mistakes = _mistakes(
        {"workers": "many"}, {"RINGSERVE_WORKRES": "1", "RINGSERVE_BATCHING_POLICY": "adaptve", "PATH": "/bin"}, path
    )
    assert sorted(mistake.removeprefix(str(path)) for mistake in mistakes) == sorted(
        [
            ":2: [server] port: 99999 is not a number from -1 to 65535",
            ":3: [server] hots: no such setting; did you mean 'host'?",
            ":4: [server] spread_us: no such setting; it belongs into [batching]",
            ":5: [[models]] base_path is missing: folder whose children are its versions: BASE/1/saved_model.pb",
            ":7: [[models]] name is missing: what clients call the model",
            ":9: [[models]] nme: no such setting; did you mean 'name'?",
            f":10: [[models]] versions: 'newest' is not {MODEL_KEYS['versions']}",
            ":12: [[models]] batch_rows_max: 'many' is not a number from 1 to 2147483647",
            ":13: [sever]: no such section; did you mean 'server'?",
            "--workers: 'many' is not a number from 0 to 1024",
            "environment RINGSERVE_WORKRES: no such setting; did you mean 'RINGSERVE_WORKERS'?",
            "environment RINGSERVE_BATCHING_POLICY: 'adaptve' is not adaptive, timeout or none; "
            "did you mean 'adaptive'?",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server\n", "not a TOML file"),
        ("server = 3\n", "server must be a table"),
        ("models = 3\n", "models must be tables"),
        ("[[models]]\nname = 3\nbase_path = '/x'\n", "3 is not a text"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nversions = []\n", "[] is not"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nversions = [-1]\n", "[-1] is not"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nversions = [true]\n", "[True] is not"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nversions = 'latest:0'\n", "'latest:0' is not"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nlabels = {x = 'y'}\n", "labels: {'x': 'y'} is not"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nlabels = [1]\n", "labels: [1] is not"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nbatching = 3\n", "3 is not a table"),
        ("[[models]]\nname = 'a'\nbase_path = '/x'\nbatching = {splt = true}\n", "did you mean 'split'"),
        ("[workers]\npin = 1\n", "1 is not true or false"),
        ("[workers]\nworkers = true\n", "True is not a number"),
        ("[workers]\nworkers = 1.5\n", "1.5 is not a number"),
        ("[server]\nhost = 3\n", "3 is not text"),
        ("[shm]\nrequest_ring_bytes = '3 parsecs'\n", "'3 parsecs' is not a number of bytes"),
    ],
)
def test_one_mistake_in_a_file(tmp_path: Path, text: str, expected: str) -> None:
    mistakes = _mistakes({}, {}, _file(tmp_path, text))
    assert any(expected in mistake for mistake in mistakes), mistakes


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "no model to serve"),
        ({"model_name": "m"}, "--model_name: is about the model of --model_base_path, which is missing"),
        ({"model_version_policy": "all"}, "--model_version_policy: is about the model of --model_base_path, which"),
        ({"model_version_policy": "newest", **_MODEL}, "--model_version_policy: 'newest' is not its versions: latest,"),
        ({"port": "-1", "rest_api_port": "0", **_MODEL}, "nobody could reach the server"),
        ({"grpc_socket_path": "/" + "x" * 107, **_MODEL}, "grpc_socket_path is longer than 107 bytes"),
        ({"metrics_path": "metrics", **_MODEL}, "metrics_path: 'metrics' does not start with a slash"),
        ({"batch_rows_allowed": "1,x", **_MODEL}, "batch_rows_allowed: '1,x' is not a list such as '1,8,32'"),
        ({"batch_rows_allowed": "0,128", **_MODEL}, "batch_rows_allowed: '0,128' is not a list"),
        ({"batch_rows_allowed": "1,64", **_MODEL}, "batch_rows_allowed ends at 64, below batch_rows_max (128)"),
        ({"port": "8501", **_MODEL}, "port and rest_api_port are both 8501"),
        ({"host": "", **_MODEL}, "host is empty"),
        ({"run_dir": "here", **_MODEL}, "not an absolute path"),
        ({"run_dir": "/" + "x" * 67, **_MODEL}, "longer than 67 bytes"),
        ({"restart_wait_ms_min": "20", "restart_wait_ms_max": "10", **_MODEL}, "restart_wait_ms_min (20) is above"),
        ({"queue_rows_max": "127", **_MODEL}, "queue_rows_max (127) is below batch_rows_max (128)"),
        ({"model_base_path": "gs://bucket/m"}, "'gs://bucket/m' is not a folder of this machine"),
    ],
)
def test_relations_between_settings(flags: dict[str, str], expected: str) -> None:
    mistakes = _mistakes(flags)
    assert any(expected in mistake for mistake in mistakes), mistakes


@pytest.mark.parametrize(
    "flags",
    [
        {"port": "-1", "rest_api_port": "0", "grpc_socket_path": "grpc.sock"},
        {"port": "-1"},
        {"grpc_socket_path": "/" + "x" * 106},
        {"metrics_path": ""},
        {"batch_rows_allowed": " 128, 8 ,8"},
        {"batch_rows_allowed": "1,300", "batch_rows_max": "200"},
    ],
)
def test_relations_that_hold(flags: dict[str, str]) -> None:
    load_settings(flags | _MODEL, {}, None)


def test_two_models_of_one_name(tmp_path: Path) -> None:
    table = '[[models]]\nname = "a"\nbase_path = "/a"\n'
    assert "two models are called 'a'" in _mistakes({}, {}, _file(tmp_path, table + table))


def test_relations_are_reported_beside_wrong_values_unless_they_concern_them() -> None:
    assert _mistakes({"workers": "x", "port": "8501", **_MODEL}) == [
        "--workers: 'x' is not a number from 0 to 1024",
        "port and rest_api_port are both 8501: gRPC and REST need a port each",
    ]
    assert _mistakes({"port": "x", "rest_api_port": "8500", **_MODEL}) == [
        "--port: 'x' is not a number from -1 to 65535"
    ]


def test_unreadable_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert f"{missing}: cannot be read: No such file or directory" in _mistakes(_MODEL, {}, missing)


def test_what_the_commands_that_call_a_server_read_is_no_setting() -> None:
    environment = {"RINGSERVE_URL": "http://h:1", "RINGSERVE_GRPC": "h:2"}
    flags = {"model_base_path": "/m"}
    assert load_settings(flags, environment, None) == load_settings(flags, {}, None)


def test_what_kubernetes_puts_into_the_environment_is_not_ours() -> None:
    environ = {
        "RINGSERVE_PORT": "tcp://10.0.0.1:8500",
        "RINGSERVE_SERVICE_HOST": "10.0.0.1",
        "RINGSERVE_SERVICE_PORT_GRPC": "8500",
        "RINGSERVE_PORT_8500_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(_MODEL, environ, None).server.port == 8500
