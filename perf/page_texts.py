"""What docs/performance.md says around its figures: how they were come by, and how to read them."""

from __future__ import annotations

INTRODUCTION = """
How fast the server is, at what cost, and beside what else one could use. This page is written by `python -m perf.all`;
no figure in it was typed in. [perf/README.md](../perf/README.md) says how to repeat any of it.
"""

METHOD = """
- *One machine.* Server and load generator share its cores, so that what the generator takes is missing to the server.
  Rates are what both together can do; nothing is subtracted.
- *Statuses and values.* Every answer's HTTP status, `grpc-status` and length are looked at, and its values compared
  with those that plain TensorFlow gave for that request in another process: floats within 1e-4, all else exactly.
  One failed call fails the program, and is told here; those of other servers are counted beside their figures.
- *Coordinated omission is excluded.* In an open loop calls come at random times (Poisson) whatever became of those
  before them, and latency counts from when a call should have been sent. A closed loop sends the next call when one is
  answered: its latencies are only those of that number of clients, and the sections say which loop it was.
- *Warm-up is separate.* Each measurement begins with a time that does not count, on connections that then stay.
- *Medians of repetitions*, which are interleaved with those of what they are compared with; in brackets the smallest
  and the largest. Rates and latencies without brackets were measured once. Ratios are of figures of one
  run.
- *Quantiles* are from a histogram with an error below 0.5 %; those of several repetitions are medians of each one's.
- *The machine's other work* is watched: processor time that belongs neither to the server nor to the generator,
  what the host gave to others included. Each section says how much that was at most; one that does not is of a program
  that did not look.
- *The host's speed, and which Python.* Hosts of virtual machines have more than one speed: each program measures a loop
  of plain Python before and after. How the interpreter was compiled counts, too:
  [Choose a Python](how-to.md#choose-a-python).
- *Models.* MLP: 784-512-512-10, float32, one row of 3.2 KB a request: what the server costs. Convolution net: 96x96x3,
  some 4 ms a row: whether the cores are used.
- *Has something changed?* `python -m perf.compare REV1 REV2` measures two revisions in turn, and says how sure it is.
"""

SECTIONS = {
    "end_to_end": """
Closed loop, the server with its defaults. The naive server calls the signature for each request from a `grpc.aio`
handler, as most teams' first server does. The raw loop is the worker's execution path without any server: what the
cores can do. The echo server answers each request with itself, 3.2 KB in place of the 0.1 KB that the model answers: in
ten pairs shorter answers made no clear difference. REST and the convolution net come after the rest.
""",
    "rest_binary": """
Closed loop, MLP, one row a request: JSON, and where the server takes them, bodies that carry the numbers as bytes.
""",
    "open_loop": """
At 70 % of what the server can do a queue is short, and what makes the slowest calls slow is the server itself. A batch
takes those together that wait, so that the middle is near the time of one batch. 70 % was measured several times, each
just after the capacity; the other shares once, at the end, of the capacity's median. At 90 and 95 % it is not steady
within a window of 5 s, as the queue grows and shrinks over longer: another run has other figures there.
""",
    "idle": """
What is taken by a server that nobody asks, after a load. It waits in the kernel; what wakes it are watchdogs, health
and metrics.
""",
    "many": """
Requests of different models cannot share a batch, so that a hundred models asked in turn have batches of one or two
rows where the single model has dozens: a call of TensorFlow for nearly each row is the least that it costs. The weights
of a hundred of them, 2.7 MB each, fit no cache: TensorFlow alone, called by one loop for one model after another, does
half as many calls as for a single one. Rows of one model share batches whatever the sizes of their requests.
""",
    "large": """
Images of 224x224x3 (0.6 MB), up to 106 in a request (64 MB), to models that compute nothing. Processor time is told in
copies: how often one core could have copied those bytes in memory meanwhile. The kernel's copies, out of the
generator's memory and into the frontend's, are among them.
""",
    "overload": """
Poisson arrivals at up to four times the capacity, each call with a deadline. Goodput is what was answered rightly
within it; see [DESIGN.md](../DESIGN.md#overload). 8 connections; `mlp_400` is the MLP asked over 400, where most reads
hold one or two calls.
""",
    "compare_servers": """
The same MLP, the same JSON bodies, the same generator and checks, on the same two cores: servers that one could choose
instead. Each in an environment of its own, pinned, tuned as its documentation says; BentoML without its batching
(`batchable=True`). They were run one after the other, in turn. TensorFlow Serving and Triton are not among them:
neither is installed by pip.
""",
    "scaling": """
At saturation every request costs each process its processor time; so many cores give so many requests, until the one
process that cannot be multiplied, the broker, has a core for itself and no more. The check asks whether the costs on
one core tell the rate on two, and the other way round. Costs fall as batches and messages get fuller, so there are as
many calls in flight for each core. Cores that wait are not in the model, which is why it says too much where they are
not all used. What is told of larger machines is for cores that are not full, and an upper bound for those: caches,
memory and the network are not in it. Beyond the broker's end: smaller hosts, or groups of models on a server each
([scaling.md](scaling.md)).
""",
}
