"""Models for the worker tests: exported once, loaded once, in the one process that has TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import exporters

if TYPE_CHECKING:
    from ringserve.workers.servable import Servable
    from tests.workers.warm import Version

SHARED = Path(__file__).parents[2] / ".." / "shared" / "models" / "tfs"


@pytest.fixture(scope="session")
def tf() -> Any:
    return exporters.tensorflow()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The version directory of a model of tests/exporters.py, by its exporter's name."""
    base = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def path_of(name: str) -> Path:
        if name not in made:
            made[name] = getattr(exporters, name)(base / name / "1")
        return made[name]

    return path_of


@pytest.fixture(scope="session")
def load(tf: Any, model_path: Callable[[str], Path]) -> Callable[..., Servable]:
    """Load a model of tests/exporters.py anew."""
    from ringserve.workers.servable import Servable

    def load_anew(name: str, **settings: Any) -> Servable:
        return Servable.load(model_path(name), name, 1, **settings)

    return load_anew


@pytest.fixture(scope="session")
def served(load: Callable[..., Servable]) -> Callable[[str], Servable]:
    """A model of tests/exporters.py, loaded once for all tests: only for tests that leave it as it was."""
    loaded: dict[str, Servable] = {}

    def servable_of(name: str) -> Servable:
        if name not in loaded:
            loaded[name] = load(name)
        return loaded[name]

    return servable_of


@pytest.fixture(scope="session")
def reference(tf: Any) -> Callable[..., list[Any]]:
    """What TensorFlow itself answers: its own v1 loader and `Session.run`, the ordinary executor, a feed dict."""

    def run(path: Path, signature: str, feeds: dict[str, Any], outputs: list[str]) -> list[Any]:
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            entry = v1.saved_model.load(session, ["serve"], str(path)).signature_def[signature]
            feed_dict = {entry.inputs[alias].name: array for alias, array in feeds.items()}
            fetched: list[Any] = session.run([entry.outputs[alias].name for alias in outputs], feed_dict)
            return fetched

    return run


@pytest.fixture
def version(tf: Any, model_path: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Version]:
    """A copy of a model of tests/exporters.py, to put a warm-up file into and to open; one a test."""
    from tests.workers.warm import Version

    return lambda name: Version(model_path(name), tmp_path)


@pytest.fixture
def shared(tf: Any, tmp_path: Path) -> Callable[[str], Version]:
    """The same of TensorFlow Serving's test models; skips where they are not at hand."""
    from tests.workers.warm import Version

    if not SHARED.is_dir():
        pytest.skip("TensorFlow Serving's test models are not here")
    return lambda name: Version(SHARED / name, tmp_path)
