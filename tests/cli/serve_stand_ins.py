"""Runs the real supervisor over stand-in children: `python serve_stand_ins.py SETTINGS_JSON_FILE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ringserve
from ringserve import supervisor
from ringserve.children import ChildSpec, Stage
from ringserve.config.schema import Settings

_STAND_IN = Path(__file__).with_name("stand_in.py")


def command_of(spec: ChildSpec) -> list[str]:
    return [sys.executable, str(_STAND_IN), *spec.arguments]


def main() -> int:
    ringserve.__file__ = os.environ["STAND_IN_FOR_FILES"]
    supervisor._STOP_MS[Stage.POOL] = int(os.environ["STAND_IN_POOL_STOP_MS"])
    settings = Settings.from_json(Path(sys.argv[1]).read_text())
    try:
        return supervisor.run(settings, command_of=command_of)
    except supervisor.StartError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except supervisor.ServerFailed as error:
        sys.stderr.write(f"failed: {error}\n")
        return 69


if __name__ == "__main__":
    sys.exit(main())
