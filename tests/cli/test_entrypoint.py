"""deploy/tf_serving_entrypoint.sh, which an image runs (spec 1.5), here without one: the real script and command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringserve.config.schema import Settings
from ringserve.tfs_flags import parse
from ringserve.tfs_settings import plan

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = _ROOT / "deploy/tf_serving_entrypoint.sh"

SettingsOf = Callable[..., Settings]


def _run(folder: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, with the command of that folder before any other."""
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        [_SCRIPT, *arguments], env={"PATH": path, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def settings_of(tmp_path: Path) -> SettingsOf:
    """What the server would run with: a stand-in for the command tells its arguments, the real code reads them."""
    stand_in = tmp_path / "tensorflow_model_server"
    stand_in.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stand_in.chmod(0o755)

    def settings(environ: dict[str, str], *arguments: str) -> Settings:
        done = _run(tmp_path, environ, *arguments)
        assert done.returncode == 0, done.stderr
        parsed = parse(done.stdout.split("\0")[:-1])
        assert not parsed.leftover
        return plan(parsed, {}).settings

    return settings


def test_1_5_defaults(settings_of: SettingsOf) -> None:
    settings = settings_of({})
    assert (settings.server.port, settings.server.rest_api_port) == (8500, 8501)
    (model,) = settings.models
    assert (model.name, model.base_path, model.versions) == ("model", "/models/model", "latest")
    assert settings.batching.policy == "adaptive"


def test_1_5_the_environment_names_the_model(settings_of: SettingsOf, tmp_path: Path) -> None:
    parameters = tmp_path / "batching parameters"
    parameters.write_text("max_batch_size { value: 16 }")
    environ = {
        "MODEL_NAME": "my model",
        "MODEL_BASE_PATH": "/srv/all models",
        "MODEL_VERSION_POLICY": "specific { versions: 3 }",
        "TF_SERVING_BATCHING_PARAMETERS_FILE": str(parameters),
    }
    settings = settings_of(environ)
    (model,) = settings.models
    assert (model.name, model.base_path, model.versions) == ("my model", "/srv/all models/my model", (3,))
    assert (model.batching.policy, model.batching.batch_rows_max) == ("timeout", 16)


def test_1_5_arguments_come_last_and_count(settings_of: SettingsOf, tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text('model_config_list { config { name: "n" base_path: "/n" model_platform: "tensorflow" } }')
    settings = settings_of(
        {"MODEL_NAME": "m"},
        f"--model_config_file={config}",
        "--model_config_file_poll_wait_seconds=60",
        "--enable_batching",
        "--rest_api_port=9501",
    )
    assert [model.name for model in settings.models] == ["n"]
    assert (settings.server.port, settings.server.rest_api_port) == (8500, 9501)
    assert settings.batching.policy == "timeout"
    assert settings.lifecycle.model_config_file_poll_wait_seconds == 60


def test_1_5_the_real_command_is_what_runs(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    if not (folder / "tensorflow_model_server").exists():
        pytest.skip("ringserve is not installed here: its commands do not exist")
    version = _run(folder, {}, "--version")
    assert (version.returncode, version.stdout.splitlines()[0].split(": ")[0]) == (0, "TensorFlow ModelServer")
    config = tmp_path / "models.config"
    config.write_text("nonsense")
    bad = _run(folder, {}, f"--model_config_file={config}")
    assert bad.returncode == 255
    assert bad.stdout == f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{config}'\n"


def test_the_image_runs_the_script_with_its_environment() -> None:
    dockerfile = (_ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]' in dockerfile
    assert f"COPY --chmod=755 {_SCRIPT.relative_to(_ROOT)} /usr/bin/tf_serving_entrypoint.sh" in dockerfile
    assert re.search(r"MODEL_NAME=model \\\n\s+MODEL_BASE_PATH=/models\n", dockerfile)
    assert "EXPOSE 8500 8501 8502\n" in dockerfile
    assert os.access(_SCRIPT, os.X_OK)
