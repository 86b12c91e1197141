"""`ringserve inspect`: what a SavedModel on disk is, and whether it will serve. Reads files, imports no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ringserve.commands.console import Failed, Status, json_option, print_json, size_text, table
from ringserve.commands.models import shape_text

if TYPE_CHECKING:
    from ringserve.commands.saved_model import ModelFiles


@click.command()
@click.argument("directory", metavar="MODEL_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(0), help="of a base path: this version (default: the highest)")
@click.option("--saved_model_tags", default="serve", show_default=True, help="tags that choose the SavedModel's graph")
@click.option("--name", help="what the model is called in the sample requests (default: its folder's name)")
@click.option("--top", default=10, show_default=True, type=click.IntRange(0), help="list so many variables and ops")
@json_option
def inspect(
    directory: Path, version: int | None, saved_model_tags: str, name: str | None, top: int, as_json: bool
) -> None:
    """Say what the SavedModel in MODEL_DIR (a version's folder, or a base path) is, and what keeps it from serving.

    Signatures with shapes and types, sizes, the largest variables, ops, who wrote it, its warm-up file, and requests to
    copy. Exits with 1 when it would not serve.

    \b
    ringserve inspect /models/digits
    ringserve inspect /models/digits/3 --top 50
    ringserve inspect /models/digits --json | jq .signatures
    """
    from ringserve.commands import findings as found_things
    from ringserve.commands.findings import Level
    from ringserve.commands.saved_model import base_findings, is_version_directory, read_version, versions_of

    versions: dict[int, Path] = {}
    about_base = []
    try:
        if is_version_directory(directory):
            path, base = directory, directory.resolve().parent
            if not directory.resolve().name.strip().isdecimal():
                about_base, base = base_findings(directory), directory.resolve()
        else:
            base = directory.resolve()
            versions, about_base = versions_of(directory), base_findings(directory)
            wanted = version if version is not None else max(versions, default=-1)
            if version is not None and version not in versions:
                raise Failed(f"{directory} has no version {version}; it has {', '.join(map(str, versions)) or 'none'}")
            path = versions.get(wanted, directory)
    except OSError as error:
        raise Failed(f"cannot read {directory}: {error.strerror}") from error
    looked_at = bool(versions) or is_version_directory(path)
    model = read_version(path, frozenset(saved_model_tags.split(","))) if looked_at else None
    found = [*about_base, *(model.findings if model is not None else ())]
    if as_json:
        summary = _summary(model, name or base.name) if model is not None else {"path": str(directory)}
        print_json({**summary, "versions": sorted(versions), "findings": found_things.as_json(found)})
    else:
        if model is not None:
            click.echo("\n".join(_lines(model, name or base.name, sorted(versions), top)))
        for line in found_things.lines(found):
            click.echo(line)
    if found_things.worst(found) >= Level.ERROR:
        raise click.exceptions.Exit(Status.FAILED)


def _sizes(model: ModelFiles) -> dict[str, int]:
    parts = {"graph": "saved_model.pb", "variables": "variables/", "assets": "assets/", "extra": "assets.extra/"}
    sizes = {part: model.bytes_of(prefix) for part, prefix in parts.items()}
    whole = model.bytes_of("")
    return {**sizes, "other": whole - sum(sizes.values()), "total": whole}


def _summary(model: ModelFiles, name: str) -> dict[str, Any]:
    from ringserve.commands.sample_request import requests
    from ringserve.shm.dtype import name_of

    def tensors(specs: Any) -> dict[str, Any]:
        return {
            alias: {"dtype": name_of(spec.dtype), "shape": spec.shape, "tensor": spec.tensor_name}
            for alias, spec in specs.items()
        }

    return {
        "path": str(model.path),
        "tensorflow_version": model.tensorflow_version,
        "tags": model.tags,
        "bytes": _sizes(model),
        "signatures": {
            signature.name: {
                "method_name": signature.method_name,
                "inputs": tensors(signature.inputs),
                "outputs": tensors(signature.outputs),
                "defaults": sorted(signature.defaults),
                "batched": signature.rows_joinable,
                "requests": requests(name, signature),
            }
            for signature in model.signatures.values()
        },
        "parameters": model.parameters,
        "variables": [
            {"name": variable, "dtype": name_of(dtype), "shape": shape, "bytes": size}
            for variable, dtype, shape, size in model.variables
        ],
        "ops": dict(model.ops.most_common()),
        "functions": model.functions,
        "warmup_records": model.warmup_records,
        "files": [{"path": file.path, "bytes": file.size_bytes} for file in model.files],
    }


def _lines(model: ModelFiles, name: str, versions: list[int], top: int) -> list[str]:
    from ringserve.commands.sample_request import requests
    from ringserve.shm.dtype import name_of

    def bold(text: str) -> str:
        return click.style(text, bold=True)

    def tensors(specs: Any) -> str:
        return ", ".join(f"{alias} {name_of(spec.dtype)} {shape_text(spec.shape)}" for alias, spec in specs.items())

    sizes = _sizes(model)
    parts = ", ".join(f"{part} {size_text(size)}" for part, size in sizes.items() if size and part != "total")
    lines = [bold(str(model.path))]
    if len(versions) > 1:
        lines.append(f"  versions: {', '.join(map(str, versions))}")
    lines += [
        f"  size: {size_text(sizes['total'])} ({parts})",
        f"  written by TensorFlow {model.tensorflow_version or '(it does not say)'}, "
        f"tags {'; '.join(','.join(tags) for tags in model.tags) or '(none)'}",
        f"  warm-up file: {'none' if model.warmup_records is None else f'{model.warmup_records} records'}",
    ]
    for signature in model.signatures.values():
        joined = "batched" if signature.rows_joinable else "not batched"
        lines += ["", f"{bold(signature.name)} ({signature.method_name or 'no method'}, {joined})"]
        lines += [f"  inputs:  {tensors(signature.inputs)}", f"  outputs: {tensors(signature.outputs)}"]
        if signature.defaults:
            lines.append(f"  defaults for: {', '.join(signature.defaults)}")
        lines += [f"  {command}" for command in requests(name, signature).values()]
    if model.variables and top:
        rows = [
            (variable, name_of(dtype), shape_text(shape), size_text(size))
            for variable, dtype, shape, size in model.variables[:top]
        ]
        count = len(model.variables)
        shown = f"; the largest {top}:" if count > top else ":"
        lines += ["", f"{count} variables, {model.parameters:,} parameters{shown}"]
        lines.append(table(("VARIABLE", "DTYPE", "SHAPE", "SIZE"), rows, right=(3,)))
    if model.ops and top:
        common = ", ".join(f"{op} × {count}" for op, count in model.ops.most_common(top))
        rest = len(model.ops) - top
        lines += ["", f"{model.ops.total()} ops in the graph and {model.functions} functions: {common}"
                  + (f", and {rest} other kinds" if rest > 0 else "")]  # fmt: skip
    return [*lines, ""]
