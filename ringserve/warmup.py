"""`ringserve warmup`: record warm-up files from live traffic, make them up, look into them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from ringserve.commands.console import Group, json_option, print_json

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=Group)
def warmup() -> None:
    """Make, record and show warm-up files: requests that a version runs before it serves.

    A version reads its own from VERSION_DIR/assets.extra/tf_serving_warmup_requests, the file of TensorFlow Serving.
    """


@warmup.command()
@click.option(
    "--server",
    envvar="RINGSERVE_URL",
    default="http://localhost:8501",
    show_default=True,
    show_envvar=True,
    help="where operators reach the server: unix:PATH of its admin.sock, or an address (see rest_admin, admin_port)",
)
@click.option("--model", required=True, help="the model whose requests are recorded")
@click.option("--count", default=100, show_default=True, type=click.IntRange(1, 1000), help="requests to record")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(0, 3600), help="how long to wait for them"
)
@click.option(
    "--output", type=_FILE, help="file to write; else that of the version that serves, if it is on this machine"
)
@click.option("--overwrite", is_flag=True, help="replace a file that is there")
@json_option
def record(
    server: str, model: str, count: int, seconds: float, output: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Record the next requests of a model that serves.

    They hold what clients sent: keep the file as you would keep that.

    \b
    ringserve warmup record --model digits --count 50
    """
    from ringserve import warmup_files as files

    with _words():
        path = output or files.warmup_file(files.version_directory(server, model))
        if path.exists() and not overwrite:
            raise files.WarmupError(f"{path} is there already; --overwrite replaces it")
        data = files.record(server, model, count, seconds)
        files.write_file(data, path, overwrite)
        _tell(files.count_of(data), path, as_json=as_json)


@warmup.command()
@click.argument("directory", metavar="VERSION_DIR", type=_DIRECTORY)
@click.option("--signature", "signatures", multiple=True, help="signature to call; may be repeated (default: all)")
@click.option("--rows", default=1, show_default=True, type=click.IntRange(1, 100_000), help="rows of each request")
@click.option("--random", "seed", type=int, metavar="SEED", help="random floats in place of zeros")
@click.option(
    "--requests", type=click.File("rb"), help="bodies of REST predict requests, one JSON object a line, to use instead"
)
@click.option("--saved_model_tags", default="serve", show_default=True, help="tags that choose the SavedModel's graph")
@click.option("--output", type=_FILE, help="file to write (default: the version's own)")
@click.option("--overwrite", is_flag=True, help="replace a file that is there")
@json_option
def make(
    directory: Path,
    signatures: tuple[str, ...],
    rows: int,
    seed: int | None,
    requests: BinaryIO | None,
    saved_model_tags: str,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a warm-up file for the SavedModel in VERSION_DIR, of made-up requests or of yours in JSON.

    A version whose warm-up file fails does not load: try the file before you rely on it.

    \b
    ringserve warmup make /models/digits/1 --rows 8
    ringserve warmup make /models/digits/1 --requests bodies.json --overwrite
    """
    from ringserve import warmup_files as files

    with _words():
        servable = files.signatures_of(directory, frozenset(saved_model_tags.split(",")))
        if requests is not None:
            records = files.of_requests(servable, files.split_requests(requests.read()))
        else:
            records = files.made_up(servable, signatures, rows, seed)
        path = output or files.warmup_file(directory)
        files.write(records, path, overwrite)
        _tell(len(records), path, as_json=as_json)


@warmup.command()
@click.argument("given", metavar="FILE|VERSION_DIR", type=click.Path(exists=True, path_type=Path))
@json_option
def show(given: Path, as_json: bool) -> None:
    """List the records of a warm-up file.

    \b
    ringserve warmup show /models/digits/1
    """
    from ringserve import warmup_files as files

    with _words():
        path = files.warmup_file(given)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise files.WarmupError(f"cannot read {path}: {error.strerror}") from error
        lines = list(files.describe(data))
        if as_json:
            print_json([line.partition(": ")[2] for line in lines])
            return
        for line in lines:
            click.echo(line)


def _tell(count: int, path: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(path), "records": count})
    else:
        click.echo(f"{count} records in {path}")


@contextlib.contextmanager
def _words() -> Iterator[None]:
    """Failures as one line on standard error and status 1."""
    from ringserve.warmup_files import WarmupError

    try:
        yield
    except WarmupError as error:
        raise click.ClickException(str(error)) from error
