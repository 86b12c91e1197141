"""What `ringserve predict` sends: JSON, .npy, .npz and image files become a request's tensors or its JSON body."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from ringserve.broker.messages import Failure
from ringserve.commands.console import Failed, Status
from ringserve.frontend.catalog import ServableView, SignatureView, TensorSpec
from ringserve.frontend.json_predict import find_signature, read_body, read_inputs
from ringserve.frontend.tensor_proto import Tensor
from ringserve.shm.dtype import BFLOAT16, DOUBLE, DTYPES, FLOAT, HALF, STRING, name_of

_Array = np.ndarray[Any, Any]
T = TypeVar("T")

IMAGE_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_FLOATS: Final = (FLOAT, DOUBLE, HALF, BFLOAT16)
#: What pixels of 0 to 255 become: (factor, offset).
RANGES: Final = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (2 / 255, -1.0)}


class Given(NamedTuple):
    """What the command line names. body: a JSON request; arrays: by alias ("" for the only input); images likewise."""

    body: bytes | None
    arrays: dict[str, _Array]
    images: dict[str, list[Path]]

    @property
    def needs_signature(self) -> bool:
        """Whether only the model's signature tells what to send over REST."""
        return self.body is None


def data_error(text: str) -> Failed:
    """What was given cannot be sent."""
    return Failed(text, Status.DATA)


def read_given(words: Sequence[str]) -> Given:
    """Read the inputs that the command line names: JSON text, `-`, files, `ALIAS=FILE`. Raises Failed."""
    body: bytes | None = None
    arrays: dict[str, _Array] = {}
    images: dict[str, list[Path]] = {}
    for word in words or ("-",):
        text = _json_text(word)
        if text is not None:
            if body is not None:
                raise data_error("more than one JSON body: give one request at a time")
            body = as_body(text)
            continue
        alias, path = _named(word)
        try:
            if path.suffix == ".npy":
                arrays[alias] = np.load(path, allow_pickle=False)
            elif path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    arrays.update({name: archive[name] for name in archive.files})
            else:
                images.setdefault(alias, []).append(path)
                with path.open("rb"):
                    pass
        except (OSError, ValueError) as error:
            raise data_error(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if body is not None and (arrays or images):
        raise data_error("JSON and files cannot be mixed in one request")
    return Given(body, arrays, images)


def _json_text(word: str) -> bytes | None:
    if word.lstrip()[:1] in ("{", "["):
        return word.encode()
    try:
        if word == "-":
            return sys.stdin.buffer.read()
        if word.endswith(".json"):
            return Path(word).read_bytes()
    except OSError as error:
        raise data_error(f"cannot read {word}: {error.strerror}") from error
    return None


def _named(word: str) -> tuple[str, Path]:
    alias, equals, path = word.partition("=")
    if not equals or os.path.exists(word):
        alias, path = "", word
    if not path.lower().endswith((".npy", ".npz", *IMAGE_ENDINGS)):
        raise data_error(f"{word!r} is no JSON text, and no .json, .npy, .npz or image file")
    return alias, Path(path)


def as_body(text: bytes) -> bytes:
    """A request's body: the text, or `{"instances": ...}` around a bare list. Raises Failed."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise data_error(f"this is no JSON: {error}") from error
    if isinstance(value, list):
        return b'{"instances": ' + text.strip() + b"}"
    if not isinstance(value, dict) or not ("instances" in value or "inputs" in value):
        raise data_error('the JSON must be a list of instances, or an object with "instances" or "inputs"')
    return text


def with_signature(body: bytes, signature: str) -> bytes:
    """The body with that signature's name in it; unchanged for none."""
    if not signature:
        return body
    return json.dumps({**json.loads(body), "signature_name": signature}).encode()


# ------------------------------------------------------------------------------------------------- with a signature


def signature_of(servable: ServableView, name: str) -> SignatureView:
    """The signature that is meant. Raises Failed, naming those there are."""
    found = find_signature(servable, name)
    if isinstance(found, Failure):
        known = ", ".join(servable.signatures) or "none"
        raise Failed(f"{found.text}; the model has {known}")
    return found


def tensors_of(given: Given, signature: SignatureView, pixels: str | None) -> dict[str, Tensor]:
    """The request's tensors by alias. pixels: a key of RANGES; None: by the input's dtype. Raises Failed."""
    if given.body is not None:
        body = _right(read_body(given.body))
        return dict(_right(read_inputs(body, signature)).tensors)
    arrays = {_alias(alias, signature): (alias, values) for alias, values in given.arrays.items()}
    found = {alias: tensor_of(values, signature.inputs[alias]) for alias, (_, values) in arrays.items()}
    for alias, paths in given.images.items():
        spec = signature.inputs[_alias(alias, signature)]
        found[spec.alias] = tensor_of(images_array(paths, spec, pixels), spec)
    missing = [alias for alias in signature.inputs if alias not in found and alias not in signature.defaults]
    if missing:
        raise data_error(f"nothing is given for the input {', '.join(missing)}: name files as {missing[0]}=FILE")
    return found


def _right(outcome: T | Failure | None) -> T:
    if isinstance(outcome, Failure):
        raise data_error(outcome.text)
    assert outcome is not None, "only a hurried reader gives up"
    return outcome


def _alias(alias: str, signature: SignatureView) -> str:
    if alias in signature.inputs:
        return alias
    if alias in ("", "arr_0") and len(signature.inputs) == 1:
        return next(iter(signature.inputs))
    names = ", ".join(signature.inputs)
    if not alias:
        raise data_error(f"the signature has several inputs: name files as ALIAS=FILE, with one of {names}")
    raise data_error(f"the signature has no input {alias}; it has {names}")


def tensor_of(values: _Array, spec: TensorSpec) -> Tensor:
    """An array as the tensor that an input wants: cast where nothing of its kind is lost, one row made a batch."""
    if spec.has_row_axis and spec.shape is not None and values.ndim == len(spec.shape) - 1:
        values = values[None]
    if spec.dtype == STRING:
        if values.dtype.kind not in "SUO":
            raise data_error(f"the input {spec.alias} wants strings, not {values.dtype}")
        flat = [str(v).encode() if isinstance(v, str) else bytes(v) for v in values.reshape(-1).tolist()]
        return Tensor(STRING, values.shape, flat)
    wanted = DTYPES[spec.dtype].numpy if spec.dtype in DTYPES else None
    if wanted is None:
        raise data_error(f"the input {spec.alias} is of type {name_of(spec.dtype)}, which cannot be sent")
    if values.dtype != wanted:
        loses = values.dtype.kind in "fc" and spec.dtype not in _FLOATS and wanted.kind != "c"
        if values.dtype.kind in "SUO" or loses:
            raise data_error(f"the input {spec.alias} wants {name_of(spec.dtype)}, not {values.dtype}")
        cast = values.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(cast, values):
            raise data_error(f"the input {spec.alias} wants {name_of(spec.dtype)}: some values do not fit")
        values = cast
    return Tensor(spec.dtype, values.shape, np.ascontiguousarray(values).tobytes())


def images_array(paths: Sequence[Path], spec: TensorSpec, pixels: str | None) -> _Array:
    """The images as one array for this input: the files' bytes where it wants strings, else pixels. Raises Failed."""
    try:
        if spec.dtype == STRING:
            found = np.empty(len(paths), object)
            found[:] = [path.read_bytes() for path in paths]
            return found if spec.shape is None or len(spec.shape) else found.reshape(())
        decoded = [_pixels(path, spec) for path in paths]
    except OSError as error:
        raise data_error(f"cannot read the image: {error}") from error
    if len({image.shape for image in decoded}) > 1:
        raise data_error("the images differ in size, and the model says none: resize them first")
    batch = np.stack(decoded)
    if spec.shape is not None and len(spec.shape) == 3 and len(paths) == 1:
        batch = batch[0]
    factor, offset = RANGES[pixels or ("0..1" if spec.dtype in _FLOATS else "0..255")]
    return batch if (factor, offset) == RANGES["0..255"] else (batch * factor + offset).astype(np.float32)


def _pixels(path: Path, spec: TensorSpec) -> _Array:
    """uint8 [height, width, channels], in the size that the input says."""
    try:
        from PIL import Image  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        text = "to decode images, install Pillow: pip install pillow; or convert them to .npy"
        raise Failed(text) from error
    shape = spec.shape or (-1, -1, -1, -1)
    if len(shape) not in (3, 4):
        sizes = ", ".join(map(str, shape))
        wanted = "[rows, height, width, channels]"
        raise data_error(f"the input {spec.alias} [{sizes}] takes no images: it should be {wanted}")
    height, width, channels = shape[-3:]
    with Image.open(path) as image:
        found = image.convert(_MODES.get(channels, "RGB"))
        if height > 0 and width > 0 and found.size != (width, height):
            found = found.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(found, np.uint8)
    return array[..., None] if array.ndim == 2 else array


# --------------------------------------------------------------------------------------------------------- as JSON


def array_of(tensor: Tensor) -> _Array:
    """A tensor as an array; strings as objects."""
    if isinstance(tensor.data, list):
        found = np.empty(len(tensor.data), object)
        found[:] = tensor.data
        return found.reshape(tensor.shape)
    return np.frombuffer(tensor.data, DTYPES[tensor.dtype].numpy).reshape(tensor.shape)


def json_value(values: _Array) -> Any:
    """The array as JSON values, as TensorFlow Serving writes them: bytes that are no text as `{"b64": ...}`. A
    complex number, which it does not write, is a pair."""
    if values.dtype == object:
        return _json_strings(values.tolist())
    if values.dtype.kind == "c":
        values = np.stack((values.real, values.imag), axis=-1)
    if values.dtype.isbuiltin == 2:  # a type of ml_dtypes
        values = values.astype(np.int64 if "int" in values.dtype.name else np.float32)
    if values.dtype.kind == "f" and values.dtype.itemsize < 8:
        # By way of the shortest text that means the same number: 0.1, not 0.10000000149011612.
        values = values.astype("U32").astype(np.float64)
    return values.tolist()


def _json_strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_strings(each) for each in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return b64(value)


def b64(value: bytes) -> dict[str, str]:
    """Bytes in JSON."""
    import base64

    return {"b64": base64.b64encode(value).decode()}


def columnar_body(tensors: dict[str, Tensor]) -> bytes:
    """A REST predict request of these tensors: strings always as b64, which means the same for every string."""

    def value(tensor: Tensor) -> Any:
        if not isinstance(tensor.data, list):
            return json_value(array_of(tensor))
        coded = np.empty(len(tensor.data), object)
        coded[:] = [b64(each) for each in tensor.data]
        return coded.reshape(tensor.shape).tolist()

    return json.dumps({"inputs": {alias: value(tensor) for alias, tensor in tensors.items()}}).encode()
