"""`ringserve inspect`: what it says of whole models, and of everything that keeps one from serving."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ringserve.cli import main
from ringserve.commands.findings import Level
from ringserve.commands.saved_model import base_findings, read_version
from ringserve.config.protos import SavedModel
from ringserve.config.tfrecord import WARMUP_FILE
from tests import exporters


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")
    return lambda name: (
        folder / name / "1" if (folder / name / "1").exists() else getattr(exporters, name)(folder / name / "1")
    )


@pytest.fixture
def copy(exported: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export, to damage."""
    return lambda name: Path(shutil.copytree(exported(name), tmp_path / name / "1"))


def inspect(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    return result.exit_code, result.output


def inspect_json(*arguments: object) -> tuple[int, Any]:
    status, output = inspect(*arguments, "--json")
    return status, json.loads(output)


def errors(path: Path) -> list[str]:
    return [finding.what for finding in read_version(path).findings if finding.level is Level.ERROR]


def test_a_whole_model(exported: Callable[[str], Path]) -> None:
    path = exported("mlp")
    status, about = inspect_json(path.parent)
    assert (status, about["versions"], about["path"], about["tags"]) == (0, [1], str(path), [["serve"]])
    assert about["tensorflow_version"] == exporters.tensorflow().__version__
    (signature,) = about["signatures"].values()
    assert signature["inputs"]["x"]["dtype"] == "float"
    assert signature["inputs"]["x"]["shape"] == [-1, 784]
    assert signature["batched"]
    assert about["parameters"] == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert about["variables"][0]["bytes"] == 784 * 512 * 4
    assert about["ops"]["MatMul"] == 3
    assert about["bytes"]["total"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert about["findings"] == []
    status, text = inspect(path.parent)
    assert status == 0
    assert "x float [?, 784]" in text
    assert "669,706 parameters" in text


@pytest.mark.parametrize(
    "name", ["several", "strings", "scalar", "table", "sparse", "echo", "identities", "aliases", "old_control_flow"]
)
def test_every_kind_of_model_that_serves_has_no_errors(exported: Callable[[str], Path], name: str) -> None:
    status, about = inspect_json(exported(name))
    assert status == 0, about["findings"]
    assert about["signatures"]


def test_it_needs_no_tensorflow(exported: Callable[[str], Path]) -> None:
    code = (
        "import sys\nfrom ringserve.cli import main\n"
        f"try: main(['inspect', {str(exported('mlp'))!r}])\n"
        "except SystemExit: pass\n"
        "sys.exit('imported' if 'tensorflow' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "serving_default" in done.stdout


def test_the_sample_request_is_one(exported: Callable[[str], Path]) -> None:
    """The line of Python in it makes the body that the REST API takes."""
    for name, shape in (("mlp", (1, 784)), ("several", None)):
        _, about = inspect_json(exported(name), "--name", "m")
        command = about["signatures"]["serving_default"]["requests"]["curl"]
        assert command.endswith("http://localhost:8501/v1/models/m:predict")
        if "python3 -c '" in command:
            code = command.partition("'")[2].partition("'")[0]
            body = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        else:
            body = command.partition("'")[2].partition("'")[0]
        inputs = json.loads(body)["inputs"]
        if shape is not None:
            assert (len(inputs), len(inputs[0])) == shape
        else:
            assert set(inputs) == set(about["signatures"]["serving_default"]["inputs"])


# ------------------------------------------------------------------------------------------------------------ damage


def test_a_missing_and_a_truncated_shard(copy: Callable[[str], Path]) -> None:
    path = copy("mlp")
    shard = path / "variables/variables.data-00000-of-00001"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)
    name = "variables/variables.data-00000-of-00001"
    assert errors(path) == [f"{name} has {size - 1} bytes where the index names {size}"]
    shard.unlink()
    assert f"{name} is missing" in errors(path)
    shutil.rmtree(path / "variables")
    assert errors(path) == ["the graph has variables, and there is no variables/ folder"]
    assert inspect(path)[0] == 1


def test_a_damaged_graph_and_a_pointer_of_git(copy: Callable[[str], Path]) -> None:
    path = copy("half")
    (path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    assert "saved_model.pb is no SavedModel" in errors(path)[0]
    (path / "saved_model.pb").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert any("is a pointer, not a file" in text for text in errors(path))


def test_other_tags_no_signature_and_python_in_the_graph(copy: Callable[[str], Path]) -> None:
    path = copy("half")
    model = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    model.meta_graphs[0].signature_def.clear()
    model.meta_graphs[0].graph_def.node.add(name="python", op="EagerPyFunc")
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert errors(path) == ["it has no signature that can be called", "its graph uses the op EagerPyFunc"]
    model.meta_graphs[0].meta_info_def.tags[:] = ["gpu"]
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert errors(path) == ["no graph has the tags serve; it has gpu"]
    assert inspect(path, "--saved_model_tags", "gpu")[0] == 1


def test_a_missing_asset_and_a_damaged_warm_up_file(copy: Callable[[str], Path]) -> None:
    path = copy("table")
    assert errors(path) == []
    for asset in list((path / "assets").iterdir()):
        asset.unlink()
        assert f"assets/{asset.name} is missing" in errors(path)
    path = copy("half")
    (path / WARMUP_FILE).parent.mkdir(exist_ok=True)
    (path / WARMUP_FILE).write_bytes(b"text")
    assert errors(path) == ["the warm-up file cannot be read: truncated record at 0"]


def test_links_that_lead_nowhere(copy: Callable[[str], Path]) -> None:
    path = copy("half")
    os.symlink(path / "gone", path / "link")
    assert errors(path) == [f"{path}/link leads nowhere: No such file or directory"]


# --------------------------------------------------------------------------------------------------------- base paths


def test_mistakes_in_the_names_of_versions(copy: Callable[[str], Path]) -> None:
    path = copy("half")
    base = path.parent
    shutil.copytree(path, base / "v2; rm x")
    shutil.copytree(path, base / "001")
    (base / "notes.txt").touch()
    found = {finding.what: finding.fix for finding in base_findings(base)}
    assert found == {
        "v2; rm x/ holds a model, and its name is no number": f"mv '{base}/v2; rm x' {base}/2",
        "001/ and 1/ are the same version 1; only the second is used": f"mv {base}/001 {base}/2",
    }
    assert inspect(base)[0] == 0


def test_a_model_without_a_version_s_folder_and_one_too_deep(copy: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy("half")
    base = tmp_path / "flat"
    shutil.copytree(path, base)
    status, text = inspect(base)
    assert status == 1
    assert "it holds saved_model.pb itself, without a version's folder" in text
    fix = next(line for line in text.splitlines() if "mkdir" in line).partition("→ ")[2]
    subprocess.run(fix, shell=True, check=True)  # what it says mends it
    assert inspect(base)[0] == 0

    deep = tmp_path / "deep" / "1" / "model"
    shutil.copytree(path, deep)
    status, text = inspect(tmp_path / "deep")
    assert status == 1
    fix = next(line for line in text.splitlines() if "mv " in line).partition("→ ")[2]
    subprocess.run(fix, shell=True, check=True)
    assert inspect(tmp_path / "deep")[0] == 0


def test_nothing_there(tmp_path: Path) -> None:
    assert inspect(tmp_path)[0] == 1
    assert "it has no version" in inspect(tmp_path)[1]
    status, text = inspect(tmp_path, "--version", "7")
    assert (status, "has no version 7; it has none" in text) == (1, True)
    assert inspect(tmp_path / "gone")[0] == 2
