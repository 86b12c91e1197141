"""A test about the code itself: who imports whom, how long files are, who asks the clock, and other habits."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ringserve.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("broker", "config", "frontend", "shm", "workers")
LIBRARY = sorted(
    path
    for path in (
        *ROOT.glob("ringserve/*.py"),
        *ROOT.glob("ringserve/commands/*.py"),
        *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")),
    )
    if path.name != "__init__.py"
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PERF = sorted(path for path in (ROOT / "perf").rglob("*.py") if "build" not in path.parts)
EVERY = [*LIBRARY, *TESTS, *PERF]

_LINES_MAX = 400
_MAIN_LINES_MAX = 100


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_library_file = pytest.mark.parametrize("path", LIBRARY, ids=_name)
every_file = pytest.mark.parametrize("path", EVERY, ids=_name)


class Imported(NamedTuple):
    """One import: the module's dotted name, its line, whether it stands at the top of the file."""

    module: str
    line: int
    top: bool
    relative: bool


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _module_exists(dotted: str) -> bool:
    base = ROOT / dotted.replace(".", "/")
    return base.with_suffix(".py").exists() or base.is_dir()


@functools.cache
def _imports(path: Path) -> tuple[Imported, ...]:
    found = []
    top = {id(node) for node in _tree(path).body}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found += [Imported(alias.name, node.lineno, id(node) in top, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                # `from ringserve.broker import wire` imports a module, `from ...wire import pack` a name of one.
                ours = module.startswith("ringserve") and _module_exists(whole)
                found.append(Imported(whole if ours else module, node.lineno, id(node) in top, node.level > 0))
    return tuple(found)


def _ours(path: Path) -> Iterator[str]:
    """Our modules that this file imports, as `broker.wire`; `ringserve.cli` for those of ringserve/."""
    for imported in _imports(path):
        if imported.module.startswith("ringserve."):
            rest = imported.module.removeprefix("ringserve.")
            yield rest if rest.split(".")[0] in FOLDERS else imported.module


# ---------------------------------------------------------------------------------------------------------- arrows

_EDGES_OF_BROKER = {
    *("main", "service", "setup", "registry", "repository", "watcher", "mailbox", "wire", "control", "metrics"),
    *("processes", "cable", "cables", "sockets", "former"),
    *("admin", "changes", "models", "operators", "state_file"),
}
_PURE_BROKER = [path for path in LIBRARY if path.parent.name == "broker" and path.stem not in _EDGES_OF_BROKER]
_WIRE = ("broker.messages", "broker.wire", "broker.control", "broker.mailbox", "broker.cable")

#: What each file, or folder, may import of ours; the first row whose name is a prefix of the file's counts.
_ARROWS: dict[str, tuple[str, ...]] = {
    "config/": ("config",),
    "shm/": ("shm",),
    "broker/messages": (),
    "broker/wire": ("broker.messages",),
    "broker/mailbox": ("broker.messages",),
    "broker/cables": ("broker.cable", "broker.registry"),
    "broker/cable": ("broker.sockets",),
    "broker/control": ("broker.messages", "broker.sockets", "broker.wire"),
    "broker/sockets": (),
    "broker/former": ("broker.core", "broker.messages", "broker.registry"),
    "broker/main": ("broker", "config"),
    "broker/service": ("broker", "config"),
    "broker/setup": ("broker", "config"),
    "broker/registry": (*_WIRE,),
    "broker/repository": ("broker.aspired", "broker.stability"),
    "broker/watcher": (),
    "broker/admin": ("broker", "config"),
    "broker/changes": ("broker", "config"),
    "broker/models": ("broker", "config"),
    "broker/operators": ("broker", "config"),
    "broker/state_file": ("config",),
    "broker/processes": (),
    "broker/metrics": ("broker.messages", "broker.statistics", "config"),
    "broker/": tuple(f"broker.{path.stem}" for path in _PURE_BROKER),
    "frontend/": (*_WIRE, "shm", "config", "frontend"),
    "workers/": (*_WIRE, "shm", "config", "workers"),
    "ringserve/sample_model": ("workers.device", "workers.quiet"),
    "ringserve/cli": ("config", "broker.main", "frontend.main", "workers.main", "ringserve"),
    "ringserve/warmup_files": (
        *("config", "broker.messages", "shm.dtype"),
        *("frontend.catalog", "frontend.json_predict", "frontend.tensor_proto"),
    ),
    "ringserve/commands/convert_models": ("broker.aspired", "workers.device", "workers.quiet"),
    "ringserve/commands/": (
        *("config", "ringserve", "shm.dtype", "broker.messages", "broker.aspired", "broker.stability"),
        *("frontend.catalog", "frontend.json_predict", "frontend.tensor_proto"),
    ),
    "ringserve/supervisor": ("config", "shm.words", "ringserve"),
    "ringserve/parts": ("config", "shm.words", "ringserve"),
    "ringserve/": ("config", "ringserve"),
}


@every_library_file
def test_import_arrows(path: Path) -> None:
    allowed = next(allowed for prefix, allowed in _ARROWS.items() if _name(path).startswith(prefix))
    wrong = [
        module for module in _ours(path) if not any(module == name or module.startswith(f"{name}.") for name in allowed)
    ]
    assert not wrong


def test_the_arrows_test_sees_wrong_arrows(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("def f():\n    from ringserve.workers import gather\nimport ringserve.cli\nimport zmq\n")
    assert set(_ours(file)) == {"workers.gather", "ringserve.cli"}


@pytest.mark.parametrize("path", _PURE_BROKER, ids=_name)
def test_the_broker_decides_without_clock_sockets_or_tensors(path: Path) -> None:
    forbidden = {"zmq", "os", "asyncio", "numpy", "time", "socket", "select", "selectors", "threading", "mmap"}
    assert not {imported.module.split(".")[0] for imported in _imports(path)} & forbidden


#: The only places that import these.
_OWNERS: dict[str, tuple[str, ...]] = {
    "tensorflow": ("workers/", "ringserve/sample_model.py", "ringserve/commands/convert_models.py"),
    "msgpack": ("broker/wire.py", "broker/control.py"),
    "zmq": ("broker/mailbox.py",),
    "grpc": ("frontend/grpcio_engine.py", "ringserve/commands/grpc_calls.py", "ringserve/commands/bench_load.py"),
    "opentelemetry": ("frontend/tracing.py",),
    "httptools": ("frontend/http1/heads.py",),
    "simdjson": ("frontend/json_blocks.py",),
    "numpy": ("shm/", "frontend/", "workers/", "ringserve/sample_model.py", "ringserve/commands/"),
    "click": ("ringserve/cli.py", "ringserve/keys.py", "ringserve/warmup.py", "ringserve/commands/"),
    "mmap": ("shm/", "workers/weights.py", "ringserve/commands/host.py"),
    "prometheus_client": ("config/metric_file.py", "ringserve/commands/top_view.py"),
}


@every_library_file
def test_libraries_stay_where_they_belong(path: Path) -> None:
    wrong = [
        f"line {imported.line}: {imported.module}"
        for imported in _imports(path)
        for library, owners in _OWNERS.items()
        if imported.module.split(".")[0] == library and not _name(path).startswith(owners)
    ]
    assert not wrong


def test_commands_load_nothing_heavy_before_they_run() -> None:
    """What a command's file imports at its top is loaded for every `--help`: click's part of each, and no more."""
    light = {"click", "ringserve.config.schema", "ringserve.config.table", "ringserve.commands.settings",
             "ringserve.commands.console", "ringserve.commands.api", "ringserve.commands.models",
             "ringserve.commands.units"}  # fmt: skip
    for module in COMMANDS.values():
        path = ROOT / f"{module.replace('.', '/')}.py"
        top = [imported.module for imported in _imports(path) if imported.top]
        assert not [name for name in top if name.startswith("ringserve") and name not in light], module


def test_commands_import_mains_only_when_they_run() -> None:
    path = ROOT / "ringserve/cli.py"
    late = ("ringserve.broker", "ringserve.frontend", "ringserve.workers", "ringserve.supervisor", "ringserve.sample")
    assert not [imported for imported in _imports(path) if imported.top and imported.module.startswith(late)]
    assert [imported for imported in _imports(path) if imported.module.startswith(late)]


@every_file
def test_imports_are_absolute_and_never_of_the_bare_folders(path: Path) -> None:
    """`import broker` works in a checkout, too, and makes a second copy of the module."""
    wrong = [
        imported for imported in _imports(path) if imported.relative or imported.module.split(".")[0] in FOLDERS
    ]
    assert not wrong


@pytest.mark.parametrize("folder", [*FOLDERS, "ringserve"])
def test_package_files_are_empty(folder: str) -> None:
    for path in (ROOT / folder).rglob("__init__.py"):
        if path.parent.resolve() != (ROOT / "ringserve").resolve():
            assert path.read_text() == ""


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_package_links_to_the_folders(folder: str) -> None:
    link = ROOT / "ringserve" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder


# ------------------------------------------------------------------------------------------------------------ size


@every_file
def test_files_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    if not any(line.startswith("# long: ") and len(line) > 20 for line in lines[:5]):
        assert len(lines) < _LINES_MAX


@pytest.mark.parametrize("path", [path for path in LIBRARY if path.name == "main.py"], ids=_name)
def test_mains_are_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) < _MAIN_LINES_MAX


@every_file
def test_every_file_says_its_job(path: Path) -> None:
    if path.name != "__init__.py":
        assert ast.get_docstring(_tree(path))


# ----------------------------------------------------------------------------------------------------------- habits

_CLOCK_ALLOWED = (
    "frontend/client.py",
    "frontend/http1/server.py",
    "frontend/http2/server.py",
    "frontend/access_log.py",
    "frontend/console.py",
    "frontend/tls_keeper.py",
    "frontend/tracing.py",
    "frontend/tally.py",
    "ringserve/supervisor.py",
    "ringserve/canary.py",
    "workers/pool.py",
    "workers/execute.py",
    "ringserve/commands/bench_load.py",
    "ringserve/commands/host.py",
    "ringserve/commands/top.py",
)


def _calls(path: Path, name: str) -> Iterator[ast.Attribute | ast.Name]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if f"{node.value.id}.{node.attr}" == name:
                yield node
        elif isinstance(node, ast.Name) and node.id == name:
            yield node


@every_library_file
def test_only_the_edges_ask_the_clock(path: Path) -> None:
    if path.name == "main.py" or _name(path) in _CLOCK_ALLOWED:
        return
    clocks = ("time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns", "time.time")
    assert not [node.lineno for clock in clocks for node in _calls(path, clock)]
    assert "from time import" not in path.read_text()


@every_library_file
def test_library_code_does_not_print(path: Path) -> None:
    if _name(path) != "ringserve/tfs_cli.py":  # whose standard output is TF Serving's
        assert not [node.lineno for node in _calls(path, "print")]


@pytest.mark.parametrize("path", TESTS, ids=_name)
def test_tests_that_sleep_say_why(path: Path) -> None:
    """Waiting for a time hides races; polling for a condition, with a limit, may be needed across processes."""
    lines = path.read_text().splitlines()
    for name in ("time.sleep", "asyncio.sleep"):
        for node in _calls(path, name):
            here = lines[node.lineno - 1]
            if not here.strip().endswith("asyncio.sleep(0)"):
                assert "#" in here or lines[node.lineno - 2].lstrip().startswith("#"), f"line {node.lineno}"


def _texts() -> list[Path]:
    kept = {".py", ".md", ".toml", ".service", ".c", ".h", ".sh", ""}
    skipped = {"build", "results", "__pycache__"}
    folders = (*FOLDERS, "ringserve", "tests", "perf", "docs", "systemd", "deploy", ".ci")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if not skipped & set(file.parts)]
    return [file for file in (*files, *ROOT.glob("[!.]*")) if file.is_file() and file.suffix in kept]


def test_nothing_names_a_developers_machine() -> None:
    """An absolute path below a home or a work folder means something to one person only."""
    home = re.compile(r"(?<![\w./-])/(home|Users|root|work|workspace)/\w")
    assert len(_texts()) > 100
    assert not [_name(file) for file in _texts() if home.search(file.read_text(errors="replace"))]


def test_assertions_stay_on() -> None:
    """Nothing runs Python with -O: assertions are part of the product."""
    optimised = re.compile(r"python3? -O|PYTHONOPTIMIZE")
    places = [ROOT / "Dockerfile", ROOT / ".ci/run", *(ROOT / "systemd").iterdir()]
    assert not [path for path in places if optimised.search(path.read_text())]
