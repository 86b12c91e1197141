"""`ringserve convert`: frozen graphs, Keras files and SavedModels become a version that serves; smaller as TFLite."""

from __future__ import annotations

from pathlib import Path

import click

from ringserve.commands.console import Failed, Status, json_option, pairs, print_json, size_text


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("base", metavar="BASE_PATH", type=click.Path(file_okay=False, path_type=Path))
@click.option("--input", "inputs", multiple=True, metavar="[ALIAS=]NAME", help="an input; may be repeated")
@click.option("--output", "outputs", multiple=True, metavar="[ALIAS=]NAME", help="an output; may be repeated")
@click.option("--version", type=click.IntRange(0), help="the version's number (default: the next)")
@click.option("--free_rows", is_flag=True, help="of a .pb: make axis 0 of all inputs free, for batches")
@click.option(
    "--tflite",
    type=click.Choice(["float32", "float16", "int8"]),
    help="also write model.tflite: weights as they are, in half the room, or in a quarter",
)
@click.option(
    "--calibrate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="with --tflite int8: rows of real inputs by alias; then computing is done in int8, too",
)
@json_option
def convert(
    source: Path, base: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], version: int | None, free_rows: bool,
    tflite: str | None, calibrate: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a version below BASE_PATH, a SavedModel with a signature serving_default, of SOURCE.

    SOURCE is a frozen GraphDef (.pb), a Keras model (.keras, .h5) or a SavedModel's folder. A frozen graph's inputs are
    its placeholders, its outputs what nothing in it uses, unless they are named, as ALIAS=NAME to choose what clients
    call them: tensors of a graph, inputs and outputs of a Keras model. The version appears when it is whole, so that a
    server may be watching.

    TFLite models serve with prefer_tflite_model and the extra 'tflite'. How far their answers are from those of the
    SavedModel, on random inputs (or those of --calibrate), is told.

    \b
    ringserve convert classifier.keras /models/classifier
    ringserve convert frozen.pb /models/old --input x=Placeholder:0 --output y=Softmax:0 --free_rows
    ringserve convert /models/classifier/3 /models/classifier --tflite int8 --calibrate rows.npz

    Exits with 65 when SOURCE cannot be read or converted.
    """
    if calibrate is not None and tflite != "int8":
        raise click.UsageError("--calibrate is for --tflite int8")
    from ringserve.commands import convert_models as models

    try:
        kind = models.kind_of(source)
    except models.ConvertError as error:
        raise Failed(str(error), Status.DATA) from error
    if free_rows and kind != "graph":
        raise click.UsageError("--free_rows is for a frozen graph (.pb)")
    if kind == "saved_model" and (inputs or outputs):
        raise click.UsageError("a SavedModel has its signatures already: --input and --output are for other files")
    try:
        done = models.convert(
            source, base, _named(inputs), _named(outputs), version=version, free_rows=free_rows, tflite=tflite or "",
            calibrate=calibrate, say=lambda text: click.echo(f"{text} ...", err=True),
        )  # fmt: skip
    except models.ConvertError as error:
        raise Failed(str(error), Status.DATA) from error
    if as_json:
        print_json(done._asdict())
        return
    click.echo(f"{done.path}: a SavedModel of {size_text(done.saved_model_bytes)}")
    if done.tflite_bytes:
        click.echo(f"{done.path}/model.tflite: {size_text(done.tflite_bytes)}, {tflite}")
        for alias, (difference, largest) in done.differences.items():
            click.echo(f"  {alias}: off by up to {difference:.2g}, of values of up to {largest:.2g}")
    click.echo(f"look at it: ringserve inspect {done.path}")


def _named(given: tuple[str, ...]) -> dict[str, str]:
    """What is called how: name -> alias."""
    found: dict[str, str] = {}
    for word in given:
        if "=" in word:
            ((alias, name),) = pairs((word,), "ALIAS=NAME").items()
        else:
            alias, name = word.split(":")[0].rpartition("/")[2], word
        if alias in found.values():
            raise click.BadParameter(f"two are called {alias}: name them as ALIAS=NAME")
        found[name] = alias
    return found
