"""What a process lets go of before it ends, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, mmap, os, sys, threading
import tensorflow  # the largest code that there is here
from ringserve.workers.leaving import leave_gently, let_go_of_code

def resident(wanted):
    found, path, mode = 0, "", ""
    for line in open("/proc/self/smaps", errors="surrogateescape"):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            mode, path = words[1], words[5] if len(words) > 5 else ""
        elif words[0] == "Rss:" and wanted(mode, path):
            found += int(words[1]) * 1024
    return found

def code(mode, path):
    return mode == "r-xp" and "tensorflow" in path

def weights(mode, path):
    return "weights" in path

told = {"code": [resident(code)]}
told["looked_at"] = let_go_of_code()
told["code"].append(resident(code))
fd = os.memfd_create("weights")
os.truncate(fd, 64 << 20)
writing = mmap.mmap(fd, 64 << 20)
writing[:] = b"x" * len(writing)
writing.close()
mapping = mmap.mmap(fd, 64 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
assert sum(mapping[at] for at in range(0, len(mapping), 4096)) == 120 * (64 << 20) // 4096
told["weights"] = [resident(weights)]
waits = threading.Event()
threading.Thread(target=waits.wait).start()
leave_gently()
told["weights"].append(resident(weights))
told["nice"] = sorted(os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task"))
told["still"] = mapping[12345]
told["sum"] = float(tensorflow.reduce_sum([1.0, 2.0]))
print(json.dumps(told))
waits.set()
"""


def test_pages_of_files_go_and_everything_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["code"][0] > 20 << 20
    assert told["code"][1] < told["code"][0] / 4
    assert told["looked_at"] >= told["code"][0]
    assert told["weights"][0] == 64 << 20
    assert told["weights"][1] == 0
    assert len(told["nice"]) > 1
    assert set(told["nice"]) == {19}
    assert told["still"] == ord("x")
    assert told["sum"] == 3.0
