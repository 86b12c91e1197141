"""The settings' table as text: `server.toml` and docs/configuration.md. Both files are tested to equal these texts."""

from __future__ import annotations

from ringserve.config.groups import GROUP_KEYS
from ringserve.config.limits import CPUS_PER_FRONTEND
from ringserve.config.schema import MODEL_FLAGS, MODEL_KEYS, SECTIONS
from ringserve.config.table import ENVIRONMENT_PREFIX, SETTINGS, Setting


def _why_of(section: str) -> str:
    lines = (SECTIONS[section].__doc__ or "").split("\n")
    return lines[0]


def server_toml() -> str:
    """A configuration file with every setting at its default, commented out."""
    lines = [
        "# Configuration of `ringserve serve --config=FILE`: every setting with its default, commented out.",
        f"# A flag (--port=8500) beats the environment ({ENVIRONMENT_PREFIX}PORT=8500), which beats this file.",
        '# Sizes are numbers of bytes or text such as "256MiB".',
    ]
    for section in SECTIONS:
        lines += ["", f"# {_why_of(section)}", f"[{section}]"]
        for row in (row for row in SETTINGS if row.section == section):
            lines += [f"# {row.why}", f"#{row.key} = {row.default_text}"]
    lines += ["", "# The models; one such table for each.", "#[[models]]"]
    examples = {
        "name": '"digits"',
        "base_path": '"/models/digits"',
        "versions": '"latest"',
        "labels": "{ stable = 1 }",
        "batching": "{ batch_rows_max = 32 }",
    }
    for key, why in MODEL_KEYS.items():
        lines += [f"# {why}", f"#{key} = {examples[key]}"]
    lines += ["", "# Groups of workers, for some of the models; one such table for each.", "#[[groups]]"]
    examples = {
        "name": '"large"',
        "models": '["digits", "lang-*"]',
        "devices": '"cpu"',
        "workers": "1",
        "workers_max": "2",
        "threads_per_worker": "4",
        "replace": '"stop_first"',
        "memory_bytes_max": '"8GiB"',
    }
    for key, why in GROUP_KEYS.items():
        lines += [f"# {why}", f"#{key} = {examples[key]}"]
    return "\n".join(lines) + "\n"


def configuration_md() -> str:
    """The reference page."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by `python -m ringserve.config.reference` from config/schema.py; a test compares. -->",
        "",
        "Every setting has a flag, a name in the environment and a key in the TOML file that `--config` names.",
        "The flag beats the environment, the environment beats the file, the file beats the default. In flags, dashes",
        "may stand for underscores. Sizes are numbers of bytes or text such as `256MiB`. The unit of a number is the",
        "end of its name: `_ms`, `_us`, `_bytes`; `_max` names a limit.",
        "",
        "All mistakes are reported together, before anything starts; a misspelt name is a mistake.",
        "`ringserve config check` takes the flags of `serve` and tells what follows from them, `ringserve config show`",
        "prints a file with every setting.",
        "",
        "Derived numbers: *usable CPUs* are those of the affinity mask, or fewer where the control group's CPU",
        "quota is smaller (rounded up). `workers` = max(1, usable CPUs // `threads_per_worker`).",
        f"`frontends` = max(1, usable CPUs // {CPUS_PER_FRONTEND}).",
    ]
    for section in SECTIONS:
        lines += ["", f"## [{section}]", "", _why_of(section), ""]
        lines += ["| key | flag | environment | default | allowed | what and why |", "|---|---|---|---|---|---|"]
        lines += [_row(row) for row in SETTINGS if row.section == section]
    lines += ["", "## [[models]]", "", "One table for each model.", "", "| key | what |", "|---|---|"]
    lines += [f"| `{key}` | {why} |" for key, why in MODEL_KEYS.items()]
    lines += ["", "## [[groups]]", "", _GROUPS, "", "| key | what |", "|---|---|"]
    lines += [f"| `{key}` | {why} |" for key, why in GROUP_KEYS.items()]
    lines += ["", "A single model can be given without a file; it takes the place of the file's list:", ""]
    lines += ["| flag | environment | what |", "|---|---|---|"]
    lines += [f"| `--{name}` | `{ENVIRONMENT_PREFIX}{name.upper()}` | {why} |" for name, why in MODEL_FLAGS.items()]
    return "\n".join(lines) + "\n\n" + _MODEL_CONFIG


_GROUPS = """\
One table for each group of workers. A group's workers load the models that it names and no others, so a change of one
of them replaces the workers of that group only. What no group names belongs to the group `default`, which `[workers]`
describes. Models that come at run time find their group by the same rule."""

_MODEL_CONFIG = """\
## model_config_file

TensorFlow Serving's ModelServerConfig, in protobuf's text format or as JSON (with either spelling of the names). It
takes the place of all other models, may be empty, and may be read again and again
(`model_config_file_poll_wait_seconds`).

```
model_config_list {
  config {
    name: "digits"
    base_path: "/models/digits"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 4 } }
    version_labels { key: "stable" value: 3 }
    batching { key: "batch_rows_max" value: "32" }
  }
}
```

Two fields of a model's `config` are not TensorFlow Serving's: `batching`, keys of [batching] that differ for this
model, and `batching_parameters`, a BatchingParameters for this model alone. As JSON:

```json
{"model_config_list": {"config": [{
  "name": "digits", "base_path": "/models/digits", "model_platform": "tensorflow",
  "model_version_policy": {"latest": {"num_versions": 2}},
  "batching_parameters": {"max_batch_size": {"value": 32}, "batch_timeout_micros": {"value": 1000}}
}]}}
```
"""


def _row(row: Setting) -> str:
    return (
        f"| `{row.key}` | `--{row.flag}` | `{row.environment}` | `{row.default_text}` | {row.allowed} | {row.why} |"
    )


def write() -> None:
    """Bring both files up to date; run from the root of a checkout."""
    for path, text in (("config/server.toml", server_toml()), ("docs/configuration.md", configuration_md())):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    write()
