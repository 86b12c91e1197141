"""TensorFlow's exceptions -> what a client or an operator is told: a code and TensorFlow's own words, no Python."""

from __future__ import annotations

import re
from typing import Any

from ringserve.broker.messages import Code, Failure


class RunFailure(Exception):
    """A run that ended in a failure which a client may see. The process and the model are fine."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.failure = Failure(code, text)


class LoadError(Exception):
    """A model version that cannot be loaded; `text` says what is wrong and what would be right."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


#: Longer texts are cut: an op may quote all of an input, and what is told to a client is shorter.
_TEXT_CHARS_MAX = 16_384
#: As much of a message is looked at, with what is cut out of it.
_MESSAGE_CHARS_MAX = 262_144

# A message quotes what clients sent: no pattern may look at the same stretch of it again from each place in it.
# What Python's Session wraps around the C++ message, which alone is what a C++ server sends.
_DECORATION = re.compile(
    r"(?<!\n)\n++(Original stack trace for|Errors may have originated from|Input Source operations connected to|"
    r"Operation defined at|The above exception).*",
    re.DOTALL,
)
_LEAD = re.compile(r"\A(Graph execution error:\s*)?(Detected at node[^\n]*\n(?:[^\n]*\n)*?Node: '[^\n]*\n)?")
_DEFINED_AT = re.compile(r"\{?\{?node ([^\s\]}]++)\}?\}?(?: \(defined at [^)]{0,4096}+\)\s*+)")


def clean(message: str) -> str:
    """TensorFlow's message without the decorations of its Python layer."""
    message = message[:_MESSAGE_CHARS_MAX]
    text = _LEAD.sub("", message, count=1)
    text = _DECORATION.sub("", text)
    text = _DEFINED_AT.sub(r"{{node \1}}", text)
    return (text.strip() or message.strip())[:_TEXT_CHARS_MAX]


def failure_of(error: Any) -> Failure:
    """The Failure of a `tf.errors.OpError`."""
    number = error.error_code
    code = Code(number) if number in Code._value2member_map_ and number != 0 else Code.UNKNOWN
    return Failure(code, clean(str(error.message)))


def failure_of_undecodable(error: UnicodeDecodeError) -> Failure:
    """The Failure of a run whose message quotes bytes that are no text, which TensorFlow's Python layer trips over.

    The code is lost with the error that was to be made of it. What a message quotes is an input, so that is to blame.
    """
    return Failure(Code.INVALID_ARGUMENT, clean(error.object[:_MESSAGE_CHARS_MAX].decode("utf-8", "replace")))
