"""`ringserve predict`: one call of a model over REST or gRPC, and its answer as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ringserve.commands.api import Api, target_path
from ringserve.commands.console import Failed, Status, json_anyway_option, url_option
from ringserve.commands.models import complete_models

if TYPE_CHECKING:
    from ringserve.commands.grpc_calls import GrpcClient
    from ringserve.commands.predict_inputs import Given
    from ringserve.frontend.catalog import ServableView


@click.command()
@click.argument("model", shell_complete=complete_models)
@click.argument("inputs", metavar="[INPUT]...", nargs=-1, type=click.Path(path_type=str))
@click.option("--version", type=click.IntRange(0), help="the version to ask (default: the highest that serves)")
@click.option("--label", help="the label of the version to ask")
@click.option("--signature", default="", metavar="NAME", help="the signature to call  [default: serving_default]")
@click.option("--outputs", metavar="NAMES", help="over gRPC: the outputs wanted, separated by commas (default: all)")
@click.option(
    "--pixels",
    type=click.Choice(["0..255", "0..1", "-1..1"]),
    metavar="0..255|0..1|-1..1",
    help="what an image's pixels become (default: 0..1 for inputs of floats, else 0..255)",
)
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(0.001), help="seconds to wait")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="also write the outputs to this .npz")
@click.option(
    "--grpc",
    "grpc_target",
    envvar="RINGSERVE_GRPC",
    show_envvar=True,
    metavar="HOST:PORT",
    help="call over gRPC, at this address; the variable counts unless --url is given",
)
@click.option("--tls_ca", type=click.Path(exists=True, dir_okay=False), help="over gRPC: use TLS, with this CA's PEM")
@url_option
@json_anyway_option
@click.pass_context
def predict(
    context: click.Context,
    model: str,
    inputs: tuple[str, ...],
    version: int | None,
    label: str | None,
    signature: str,
    outputs: str | None,
    pixels: str | None,
    timeout: float,
    output: Path | None,
    grpc_target: str | None,
    tls_ca: str | None,
    url: str,
) -> None:
    """Ask MODEL of a running server, ringserve or TensorFlow Serving, and print its answer as JSON.

    An INPUT is JSON (a text, a .json file, or - for standard input, the default), a .npy, .npz or image file. JSON is
    what the REST API takes, or only the list of instances. Files are given as ALIAS=FILE where a signature has several
    inputs; more than one image makes a batch. One row without a batch axis gets one.

    \b
    ringserve predict half '[1.0, 2.0, 5.0]'
    ringserve predict digits request.json --label canary
    ringserve predict digits x=rows.npy --grpc localhost:8500 --output answer.npz
    ringserve predict classifier cat.jpg dog.jpg --pixels=-1..1

    Exits with 1 when the server refuses, 65 when the input cannot be read or does not fit the signature, and 69 when
    nobody answers.
    """
    if version is not None and label is not None:
        raise click.UsageError("--version and --label exclude each other")
    grpc_target = _wanted_target(context, grpc_target)
    from ringserve.commands.predict_inputs import read_given

    given = read_given(inputs)
    if grpc_target:
        from ringserve.commands.grpc_calls import GrpcClient

        with GrpcClient(grpc_target, timeout, tls_ca) as client:
            answer = _over_grpc(client, (model, version, label), given, signature, outputs, pixels)
    else:
        if outputs or tls_ca:
            raise click.UsageError("--outputs and --tls_ca are for gRPC: give --grpc HOST:PORT, and no --url")
        answer = _over_rest(Api(url, timeout), (model, version, label), given, signature, pixels)
    click.echo(printed(answer))
    if output is not None:
        _save(answer, output)


def _wanted_target(context: click.Context, grpc_target: str | None) -> str | None:
    """Where to call over gRPC; None for REST. What is on the command line counts before the environment: the answer of
    another server than the one that was named would be taken for that one's."""
    if context.get_parameter_source("url") is not ParameterSource.COMMANDLINE:
        return grpc_target
    if context.get_parameter_source("grpc_target") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--url and --grpc exclude each other: one is called over REST, the other over gRPC")
    return None


_Target = tuple[str, int | None, str | None]


def _over_grpc(
    client: GrpcClient, target: _Target, given: Given, signature: str, outputs: str | None, pixels: str | None
) -> dict[str, Any]:
    from ringserve.commands.predict_inputs import array_of, json_value, signature_of, tensors_of

    found = signature_of(client.signatures(*target), signature or _named_in(given.body))
    tensors = tensors_of(given, found, pixels)
    wanted = tuple(name.strip() for name in outputs.split(",")) if outputs else ()
    answer = client.predict(*target, found.name, tensors, wanted)
    return {
        "model": target[0],
        "version": answer.version,
        "signature": found.name,
        "outputs": {alias: json_value(array_of(tensor)) for alias, tensor in sorted(answer.outputs.items())},
    }


def _named_in(body: bytes | None) -> str:
    name = json.loads(body).get("signature_name", "") if body is not None else ""
    return name if isinstance(name, str) else ""


def _over_rest(api: Api, target: _Target, given: Given, signature: str, pixels: str | None) -> dict[str, Any]:
    from ringserve.commands.predict_inputs import columnar_body, signature_of, tensors_of, with_signature

    body = given.body
    if body is None:
        found = signature_of(rest_signatures(api, target), signature)
        body = columnar_body(tensors_of(given, found, pixels))
    answer: Any = api.call("POST", target_path(*target, ":predict"), with_signature(body, signature))
    if not isinstance(answer, dict):
        raise Failed("the answer is no JSON object: is this a model server?")
    return answer


def rest_signatures(api: Api, target: _Target) -> ServableView:
    """A model's signatures by its metadata."""
    from google.protobuf import json_format

    from ringserve.config.protos import SignatureDefMap
    from ringserve.frontend.catalog import servable_view

    told = api.call("GET", target_path(*target, "/metadata"))
    try:
        # In JSON the map is an Any, wrapped once more; unknown fields are of newer releases.
        parsed = json_format.ParseDict(
            {"signature_def": told["metadata"]["signature_def"]["signature_def"]},
            SignatureDefMap(),
            ignore_unknown_fields=True,
        )
    except (KeyError, TypeError, json_format.ParseError) as error:
        raise Failed(f"the model's metadata cannot be read: {error}") from error
    return servable_view(target[0], 0, parsed.SerializeToString())


def printed(answer: dict[str, Any]) -> str:
    """JSON with a line for each output, whatever its size."""
    lines = []
    for key, value in answer.items():
        if isinstance(value, dict) and value and set(value) != {"b64"}:
            inner = ",\n  ".join(f"{json.dumps(name)}: {_compact(each)}" for name, each in value.items())
            lines.append(f"{json.dumps(key)}: {{\n  {inner}\n }}")
        else:
            lines.append(f"{json.dumps(key)}: {_compact(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _save(answer: dict[str, Any], path: Path) -> None:
    import numpy as np

    value = answer.get("outputs", answer.get("predictions"))
    arrays = value if isinstance(value, dict) else {"outputs": value}
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        arrays = {name: [row.get(name) for row in value] for name in value[0]}
    try:
        with path.open("wb") as file:
            named: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
            np.savez(file, **named)
    except (OSError, ValueError) as error:
        raise Failed(f"cannot write {path}: {error}", Status.FAILED) from error
