"""Messages that are known by all of their bytes but the payloads, for Predict (`predict_codec.py` says why that holds).

The table is asked once for every request: by the message's length, then by what precedes the first payload, which
names the model. So a hundred models whose requests are equally long cost as much as one.
"""

from __future__ import annotations

from itertools import pairwise

from ringserve.frontend.handler import Buffer
from ringserve.frontend.lanes import Lane, Request
from ringserve.frontend.tensor_proto import TYPED_FIELDS, Tensor, bools_valid
from ringserve.frontend.wire_walk import CONTENT, find_payloads
from ringserve.shm.dtype import BOOL

#: What a match gives: as Request, without the cost of making one.
Matched = tuple[Lane, int, list[Buffer | list[bytes]]]


class Template:
    """A message's constant bytes and what it means; a `handler.Kind`. Slices are ready-made: making one costs as much
    as using it."""

    __slots__ = (
        "bools",
        "gaps",
        "hits",
        "lane",
        "payloads",
        "prefix",
        "prefix_slice",
        "rows",
        "suffix",
        "suffix_slice",
    )

    def __init__(self, message: bytes, request: Request, places: list[tuple[int, int]]) -> None:
        """places: of each payload, in the lane's input order."""
        ordered = sorted(places)
        self.prefix_slice = slice(0, ordered[0][0])
        self.prefix = message[self.prefix_slice]
        self.suffix_slice = slice(ordered[-1][1], len(message))
        self.suffix = message[self.suffix_slice]
        between = [slice(one[1], next_one[0]) for one, next_one in pairwise(ordered)]
        self.gaps = tuple((gap, message[gap]) for gap in between)
        self.payloads = tuple(slice(start, end) for start, end in places)
        self.lane = request.lane
        self.rows = request.rows
        specs = request.lane.spec.inputs
        self.bools = tuple(place for spec, place in zip(specs, self.payloads, strict=True) if spec.dtype == BOOL)
        self.hits = 0

    @property
    def constant_bytes(self) -> int:
        return len(self.prefix) + len(self.suffix) + sum(len(constant) for _, constant in self.gaps)


class _Alike:
    """Templates of one message length whose first payloads begin at one place, by all that precedes it."""

    __slots__ = ("by_prefix", "prefix_slice")

    def __init__(self, prefix_slice: slice) -> None:
        self.prefix_slice = prefix_slice
        self.by_prefix: dict[bytes, list[Template]] = {}


class TemplateTable:
    """Templates by message length and prefix, bounded in every direction: clients need be neither few nor honest.

    For one length of a message at most `alike_max` lengths of prefixes (each costs a failed lookup), for one prefix so
    many templates (each costs a failed comparison), `templates_max` in all, and `constant_bytes_max` in each. A
    template is made at the second miss of a length. When there is no room, templates that have matched nothing since
    the last such moment make room; if all have, the new one is not kept. So traffic that never repeats cannot drive out
    the templates in use, and costs what a miss costs.
    """

    def __init__(self, templates_max: int = 512, alike_max: int = 8, constant_bytes_max: int = 4096) -> None:
        self._templates_max = templates_max
        self._alike_max = alike_max
        self._constant_bytes_max = constant_bytes_max
        self._by_length: dict[int, list[_Alike]] = {}
        self._missed_lengths: set[int] = set()
        self._count = 0
        self._refused = 0

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Forget everything: the catalog has changed, or a message may mean something else now."""
        self._by_length.clear()
        self._missed_lengths.clear()
        self._count = 0

    def match(self, message: Buffer) -> Matched | None:
        """What `message` means, when a template fits. The payloads are views into it."""
        of_length = self._by_length.get(len(message))
        if of_length is None:
            return None
        view = message if type(message) is memoryview else memoryview(message)
        for alike in of_length:
            for template in alike.by_prefix.get(view[alike.prefix_slice].tobytes(), ()):
                if view[template.suffix_slice].tobytes() != template.suffix:
                    continue
                if template.gaps and not _holds(view, template.gaps):
                    continue
                template.hits += 1
                if template.bools and not all(bools_valid(view[place]) for place in template.bools):
                    return None  # the long way reports it
                if template.gaps:
                    return template.lane, template.rows, [view[place] for place in template.payloads]
                return template.lane, template.rows, [view[template.payloads[0]]]
        return None

    def plain(self, message: Buffer) -> Template | None:
        """The template of this message, where all between its prefix and its suffix is one payload of which any bytes
        are valid."""
        view = memoryview(message)
        for alike in self._by_length.get(len(message), ()):
            for template in alike.by_prefix.get(view[alike.prefix_slice].tobytes(), ()):
                if view[template.suffix_slice] == template.suffix and not template.gaps and not template.bools:
                    return template
        return None

    def learn(self, message: bytes, request: Request, tensors: dict[str, Tensor]) -> None:
        """Keep a template of `message`, which was parsed the long way as `request`, if it is of the plain kind."""
        length = len(message)
        if length not in self._missed_lengths:
            if len(self._missed_lengths) >= 2 * self._templates_max:
                self._missed_lengths.clear()
            self._missed_lengths.add(length)
            return
        if not self._has_room():
            return
        places = _payload_places(message, request, tensors)
        if not places:
            return
        template = Template(message, request, places)
        if template.constant_bytes <= self._constant_bytes_max:
            self._keep(length, template)

    def _has_room(self) -> bool:
        if self._count < self._templates_max:
            return True
        # A sweep of everything is paid by as many misses as there are templates.
        self._refused += 1
        if self._refused >= self._templates_max:
            self._refused = 0
            for length in list(self._by_length):
                self._sweep(length)
        return self._count < self._templates_max

    def _keep(self, length: int, template: Template) -> None:
        alike = self._alike(length, template)
        if alike is None:
            self._sweep(length)
            alike = self._alike(length, template)
        if alike is not None:
            alike.append(template)
            alike.sort(key=lambda each: -each.hits)
            self._count += 1

    def _alike(self, length: int, template: Template) -> list[Template] | None:
        """Where the template belongs; None: there is no room for it."""
        of_length = self._by_length.setdefault(length, [])
        for alike in of_length:
            if alike.prefix_slice == template.prefix_slice:
                break
        else:
            if len(of_length) >= self._alike_max:
                return None
            alike = _Alike(template.prefix_slice)
            of_length.append(alike)
        templates = alike.by_prefix.setdefault(template.prefix, [])
        return templates if len(templates) < self._alike_max else None

    def _sweep(self, length: int) -> None:
        """Drop what has not matched since the last sweep, as far as its hits have faded."""
        of_length = []
        for alike in self._by_length[length]:
            by_prefix = {}
            for prefix, templates in alike.by_prefix.items():
                kept = [template for template in templates if template.hits]
                for template in kept:
                    template.hits >>= 1
                self._count -= len(templates) - len(kept)
                if kept:
                    by_prefix[prefix] = kept
            if by_prefix:
                alike.by_prefix = by_prefix
                of_length.append(alike)
        if of_length:
            self._by_length[length] = of_length
        else:
            del self._by_length[length]


def _holds(view: memoryview, gaps: tuple[tuple[slice, bytes], ...]) -> bool:
    """Whether the bytes between the payloads are the template's. (A generator would cost more than the comparing.)"""
    for gap, constant in gaps:  # noqa: SIM110
        if view[gap].tobytes() != constant:
            return False
    return True


def _payload_places(message: bytes, request: Request, tensors: dict[str, Tensor]) -> list[tuple[int, int]] | None:
    """[start, end) of each input's payload in `message`, in the lane's order; None unless all are surely found."""
    specs = request.lane.spec.inputs
    if len(specs) != len(tensors):
        return None  # defaults were filled in
    for spec in specs:
        # Only tensor_content is kept by the decoder as bytes: spare what cannot qualify the walk.
        if not TYPED_FIELDS[spec.dtype].raw and not isinstance(tensors[spec.alias].data, bytes):
            return None
    found = find_payloads(message)
    if found is None or found.keys() != tensors.keys():
        return None
    places = []
    for spec in specs:
        of_input = found[spec.alias]
        field = TYPED_FIELDS[spec.dtype]
        start, end = of_input.get(CONTENT, (0, 0))
        if start == end:
            if not field.raw:
                return None
            start, end = of_input.get(field.number, (0, 0))
        # The official parser's bytes are the judge: complete, not filled up or cut, and just these.
        if start == end or message[start:end] != tensors[spec.alias].data:
            return None
        places.append((start, end))
    return places
