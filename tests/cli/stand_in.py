"""Stand-in children for the supervisor: they do what `STAND_IN` (JSON: name -> behaviour) says and keep a diary.

    python stand_in.py ROLE --resolved FILE --death-fd N --name NAME ...

Behaviours: "serve" (the default: say READY, stop when asked), "fail" (exit with 3 before READY), "config" (exit with
78), "fatal" (say READY, write why the server must end, exit with 69), "die" (say READY, then exit with 4), "deaf" (say
READY, ignore SIGTERM), "drain" (say READY, exit when the file `go` is in the diary's folder), "parent" (say READY,
leave a sleeping grandchild behind when killed). The first of "hang" says READY and nothing more, the first of
"hang-at-start" not even that; both ignore SIGTERM, and those that follow serve. "mute" serves, and does not answer what
comes to the operators' socket; the others do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from ringserve.config import process, rundir
from ringserve.config.schema import Settings


def _answer(fd: int) -> None:
    """200 to whatever comes to the operators' socket."""
    listener = socket.socket(fileno=fd)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def main() -> int:
    arguments = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    name = arguments["--name"]
    behaviour = json.loads(os.environ["STAND_IN"]).get(name, "serve")
    diary = Path(os.environ["STAND_IN_DIARY"])

    def write(event: str) -> None:
        with diary.open("a") as file:  # one short write in append mode: lines of several processes do not mix
            file.write(f"{event} {name} {os.getpid()}\n")

    settings = Settings.from_json(Path(arguments["--resolved"]).read_text())
    if "--listen-fd" in arguments:
        assert socket.socket(fileno=int(arguments["--listen-fd"])).getsockname().endswith("broker.sock")
    if "--admin-socket-fd" in arguments and behaviour != "mute":
        threading.Thread(target=_answer, args=(int(arguments["--admin-socket-fd"]),), daemon=True).start()
    stop = process.StopWatch(int(arguments["--death-fd"]))
    write("started")
    if behaviour == "fail":
        return 3
    if behaviour == "config":
        return process.Exit.CONFIG
    if behaviour == "parent":
        with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as grandchild:
            write(f"grandchild={grandchild.pid}")
            process.tell_ready()
            stop.wait()
            os._exit(0)
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour.startswith("hang") and diary.read_text().count(f"started {name} ") == 1:
        if behaviour == "hang":
            process.tell_ready()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    process.tell_ready()
    if behaviour == "fatal":
        while "started pool" not in diary.read_text():
            time.sleep(0.02)  # polls: a process that is stopped before it can say so leaves nothing in the diary
        rundir.write_fatal(settings.server.run_dir, "UNKNOWN: 1 servable(s) did not: {{}}")
        return process.Exit.FATAL
    if behaviour == "die":
        return 4
    heartbeat = process.Heartbeat()
    while (wanted := stop.wait(heartbeat.period_ns / 4e9 or None)) is None:
        heartbeat.beat(time.monotonic_ns())
    write("supervisor-gone" if wanted.at_once else "asked-to-stop")
    if behaviour == "drain":
        while not (diary.parent / "go").exists():
            time.sleep(0.02)  # polls for the file by which the test ends the drain
    write("stopped")
    return process.Exit.OK


if __name__ == "__main__":
    sys.exit(main())
