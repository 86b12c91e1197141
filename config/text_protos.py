"""Configuration files in protobuf's text format or JSON: read, parsed, and refused with TF Serving's words."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import json_format, text_format

from ringserve.config.regular_file import regular_only

INVALID_ARGUMENT: Final = 3
#: The codes of ModelConfigError, gRPC's and TensorFlow's, and their names as a starting server prints them.
CODE_NAMES: Final = {
    2: "UNKNOWN",
    INVALID_ARGUMENT: "INVALID_ARGUMENT",
    5: "NOT_FOUND",
    7: "PERMISSION_DENIED",
    9: "FAILED_PRECONDITION",
    12: "UNIMPLEMENTED",
}
_CODE_OF_ERRNO: Final = {errno.ENOENT: 5, errno.EACCES: 7, errno.EPERM: 7, errno.EISDIR: 9}
_PLACE: Final = re.compile(r"(\d+):(\d+) : (?:'.*?': )?", re.DOTALL)


class ModelConfigError(Exception):
    """A configuration that cannot be used. code: an error code's number; text: TF Serving's words where it has any.

    detail: what TF Serving writes to standard error beside it (where in the text it is wrong), or empty.
    """

    def __init__(self, code: int, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.detail = detail

    @property
    def status(self) -> str:
        """`CODE: text`, as a status is printed."""
        return f"{CODE_NAMES[self.code]}: {self.text}"


def invalid(text: str) -> ModelConfigError:
    """The error of nearly all mistakes."""
    return ModelConfigError(INVALID_ARGUMENT, text)


def parse_text(text: str, cls: Any) -> Any:
    """A message of that class from the text format. Raises ModelConfigError; its text names line and column."""
    try:
        return text_format.Parse(text, cls())
    except text_format.ParseError as error:
        place = _PLACE.match(str(error))
        where, why = (f"{place[1]}:{place[2]}", str(error)[place.end() :]) if place else ("1:1", str(error))
    except RecursionError:
        where, why = "1:1", "nested too deeply"
    raise _syntax_error(cls, where, why)


def parse_json(text: str, cls: Any, prepare: Callable[[Any], Any]) -> Any:
    """Likewise from JSON with the field names of either spelling. prepare: makes of the JSON value what the official
    mapping reads; it may be given any JSON value."""
    where = "1:1"
    try:
        return json_format.ParseDict(prepare(json.loads(text)), cls())
    except json.JSONDecodeError as error:
        where, why = f"{error.lineno}:{error.colno}", error.msg
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
        why = str(error).split("\n", 1)[0]
    except RecursionError:
        why = "nested too deeply"
    raise _syntax_error(cls, where, why)


def _syntax_error(cls: Any, where: str, why: str) -> ModelConfigError:
    return invalid(f"Error parsing text-format {cls.DESCRIPTOR.full_name}: {where}: {why}")


def read_message(path: str, parse: Callable[[str], Any]) -> Any:
    """What `parse` makes of the file's text. Raises ModelConfigError: the operating system's error, or
    `Invalid protobuf file` with the place as its detail."""
    try:
        with open(path, "rb", opener=regular_only) as file:
            text = file.read().decode()
    except OSError as error:
        raise ModelConfigError(_CODE_OF_ERRNO.get(error.errno or 0, 2), f"{path}; {error.strerror}") from error
    except UnicodeDecodeError as error:
        detail = f"byte {error.start} is not UTF-8"
        raise ModelConfigError(INVALID_ARGUMENT, f"Invalid protobuf file: '{path}'", detail) from error
    try:
        return parse(text)
    except ModelConfigError as error:
        raise ModelConfigError(INVALID_ARGUMENT, f"Invalid protobuf file: '{path}'", error.text) from error
