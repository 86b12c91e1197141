"""The generated pages of docs/ as text, from the code they describe: `python -m tests.reference` writes them.

Run from the root of a checkout; test_docs.py compares.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ringserve.broker import control, messages
from ringserve.broker.messages import Code
from ringserve.frontend.status import HTTP_STATUS
from ringserve.tfs_flags import TFS_FLAGS
from tests.reference_cli import cli_md
from tests.reference_metrics import metrics_md

ROOT = Path(__file__).resolve().parents[1]

_HOT = ("Submit", "Cancel", "Execute", "Result", "Done", "Release", "Failed")
_VALUES = ("Failure", "ModelVersion", "InputSpec", "LaneSpec", "VersionInfo")

#: When a client sees it. Codes that only a model's own run time can answer with say so.
_WHEN: dict[Code, str] = {
    Code.OK: "the call succeeded",
    Code.CANCELLED: "the client went away or cancelled before the answer",
    Code.UNKNOWN: "a model's run time said so; nothing of the server's own",
    Code.INVALID_ARGUMENT: "inputs that do not fit the signature, or bytes that do not parse",
    Code.DEADLINE_EXCEEDED: "the request's time is over, or by the learned run times cannot be met",
    Code.NOT_FOUND: "no such model, version or label",
    Code.ALREADY_EXISTS: "a model's run time said so; nothing of the server's own",
    Code.PERMISSION_DENIED: "access control: the key may not do this",
    Code.RESOURCE_EXHAUSTED: "a queue or a ring is full, a message too large, a rate too high: try later, or smaller",
    Code.FAILED_PRECONDITION: "a model's run time said so, or its signature cannot be run this way",
    Code.ABORTED: "a model's run time said so; nothing of the server's own",
    Code.OUT_OF_RANGE: "a model's run time said so; nothing of the server's own",
    Code.UNIMPLEMENTED: "no such gRPC method, or a part of it that is not supported",
    Code.INTERNAL: "a bug of the server's, or a request that ended every worker that ran it",
    Code.UNAVAILABLE: "no worker can run it now, or the server is stopping: try again",
    Code.DATA_LOSS: "a model's run time said so; nothing of the server's own",
    Code.UNAUTHENTICATED: "access control: no key was shown, or none that is known",
}


def message_names() -> list[str]:
    """Every NamedTuple of broker/messages.py, in its order."""
    return [
        name
        for name, value in vars(messages).items()
        if inspect.isclass(value) and issubclass(value, tuple) and value.__module__ == messages.__name__
    ]


def messages_md() -> str:
    """The reference of what travels between the processes."""
    lines = [
        "# Messages between the processes",
        "",
        "<!-- Written by `python -m tests.reference` from broker/messages.py; a test compares. -->",
        "",
        f"Protocol version {messages.PROTOCOL_VERSION}. *Hot* messages go over cables, Failed over ZeroMQ",
        "(`broker/wire.py`), *control* messages over the registration socket (`broker/control.py`). Times are",
        "nanoseconds of the host's monotonic clock; a deadline of 0 means none.",
    ]
    names = message_names()
    control_names = [name for name in names if name not in (*_HOT, *_VALUES)]
    for title, group in (("Hot", _HOT), ("Control", control_names), ("Values inside them", _VALUES)):
        lines += ["", f"## {title}"]
        for name in group:
            message: Any = getattr(messages, name)
            fields = ", ".join(f"`{field}`" for field in message._fields)
            lines += ["", f"### {name}", "", f"Fields: {fields}.", "", inspect.cleandoc(message.__doc__ or "")]
    return "\n".join(lines) + "\n"


def failures_md() -> str:
    """The reference of what a client may see."""
    lines = [
        "# Failures",
        "",
        "<!-- Written by `python -m tests.reference` from messages.py and status.py; a test compares. -->",
        "",
        "Every call ends in one of these codes: as the status of a gRPC call, and as the HTTP status of a REST call,",
        "whose body then is `{\"error\": \"text\"}`. One request fails alone, whatever batch it ran in.",
        "",
        "| code | gRPC | HTTP | when |",
        "|---|---|---|---|",
    ]
    lines += [f"| {code.name} | {int(code)} | {HTTP_STATUS[code]} | {_WHEN[code]} |" for code in Code]
    return "\n".join(lines) + "\n"


def control_messages() -> set[str]:
    """Names of the messages that the registration channel carries."""
    return {message.__name__ for message in control._MESSAGES}


def flags_md() -> str:
    """The reference of TensorFlow Serving's command line as it is understood here."""
    lines = [
        "# tensorflow_model_server",
        "",
        "<!-- Written by `python -m tests.reference` from ringserve/tfs_flags.py; a test compares. -->",
        "",
        "TensorFlow Serving's command: its flags, its way to parse them (`--name=value` only), its texts and exit",
        "statuses. Every flag of its is understood:",
        "",
        "| flag | type | default | here | |",
        "|---|---|---|---|---|",
    ]
    for flag in TFS_FLAGS.values():
        default = f'"{flag.default}"' if flag.kind == "string" else str(flag.default).lower()
        lines.append(f"| `--{flag.name}` | {flag.kind} | `{default}` | {flag.treatment.value} | {flag.about} |")
    lines += [
        "",
        "Besides, every setting of [configuration.md](configuration.md) whose flag TensorFlow Serving does not have",
        "may be given as `--name=value` (a bool also as `--name`), and all of them in the environment",
        "(`RINGSERVE_NAME`). Flags beat the environment. Where the two servers' defaults differ, this command takes",
        "TensorFlow Serving's: no REST port, no metrics without `--monitoring_config_file`, no gRPC health service",
        "without `--enable_grpc_healthcheck_service`.",
        "",
        "`--enable_batching` takes BatchingParameters' own defaults (1000 rows, no wait, 10 batches waiting, no",
        "splitting). A mistake in these parameters ends the start; TensorFlow Serving finds some of them only when it",
        "loads a model.",
        "",
        "The image's entry point (`deploy/tf_serving_entrypoint.sh`) adds its arguments to this command's line and",
        "reads `MODEL_NAME`, `MODEL_BASE_PATH`, `MODEL_VERSION_POLICY` and `TF_SERVING_BATCHING_PARAMETERS_FILE`.",
    ]
    return "\n".join(lines) + "\n"


PAGES = {
    "docs/cli.md": cli_md,
    "docs/messages.md": messages_md,
    "docs/failures.md": failures_md,
    "docs/metrics.md": metrics_md,
    "docs/tensorflow_model_server.md": flags_md,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (ROOT / page).write_text(make())
