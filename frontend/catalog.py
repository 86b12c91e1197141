"""The frontend's copy of the catalog: which model versions serve, what their signatures are, and how names resolve.

Pure: the client feeds `update` with what the broker sends. Everything handed out is immutable and stays valid after
the next update; `epoch` tells whoever caches what it found here that the answer may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ringserve.broker.messages import Code, Failure, VersionInfo, VersionState
from ringserve.config.protos import SignatureDefMap
from ringserve.frontend.tensor_proto import Tensor, decode

#: Signature that a request means when it names none.
DEFAULT_SIGNATURE: Final = "serving_default"

#: TensorFlow numbers "reference to dtype d" as d + 100; the values of such tensors are plain d.
_REFERENCE: Final = 100

#: Largest default that a signature may hold, decoded. Defaults are small constants; more is a broken model.
_DEFAULT_BYTES_MAX: Final = 64 * 2**20


class TensorSpec(NamedTuple):
    """What a signature says of one input or output, which may be wrong: nothing checks it when a model is saved.

    dtype: DataType number, never a reference type. shape: None for unknown rank, -1 for an unknown axis.
    tensor_name: of the graph's tensor, `x:0`.
    """

    alias: str
    dtype: int
    shape: tuple[int, ...] | None
    tensor_name: str

    @property
    def has_row_axis(self) -> bool:
        """Whether axis 0 is declared as free, so that rows of several requests may be joined along it."""
        return self.shape is not None and len(self.shape) >= 1 and self.shape[0] == -1


@dataclass(frozen=True, slots=True, eq=False)
class SignatureView:
    """One signature of one model version. Inputs and outputs are sorted by alias.

    defaults: for inputs that a request may leave out; a Failure where the stored default does not decode.
    rows_joinable: every input has a row axis (the outputs are looked at per request: it may want only some).
    """

    name: str
    method_name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    defaults: dict[str, Tensor | Failure]
    rows_joinable: bool
    output_aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ServableView:
    """One AVAILABLE model version. signature_defs: its serialized SignatureDefMap, as GetModelMetadata gives it.

    pads: rows of different inner shapes share a batch (`messages.Catalog.pads`).
    """

    name: str
    version: int
    signatures: dict[str, SignatureView]
    signature_defs: bytes = field(repr=False)
    pads: bool = False


class VersionStatus(NamedTuple):
    """One line of GetModelStatus. state: a VersionState; error_code: a Code, OK when there was no error.

    notes: as in messages.VersionInfo.
    """

    version: int
    state: int
    error_code: int
    error_text: str
    notes: tuple[str, ...] = ()


class _Model:
    """Everything known of one model name."""

    __slots__ = ("labels", "latest", "servables", "statuses")

    def __init__(self) -> None:
        self.servables: dict[int, ServableView] = {}
        self.latest: ServableView | None = None
        self.statuses: list[VersionStatus] = []
        self.labels: Mapping[str, int] = {}


class Catalog:
    """Resolves names to servables with TF Serving's rules and texts.

    `epoch` grows with every update that changed anything; what was resolved under an older epoch must be resolved anew.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._models: dict[str, _Model] = {}
        self._versions: list[VersionInfo] = []
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._names: list[str] = []
        self.pads: frozenset[str] = frozenset()
        #: Some model of the start may still come; until the broker's first catalog nothing at all is known.
        self.starting = True
        self._watchers: dict[object, Callable[[], None]] = {}

    def update(
        self,
        versions: Sequence[VersionInfo],
        labels: Mapping[str, Mapping[str, int]] | None = None,
        models: Sequence[str] | None = None,
        pads: Sequence[str] = (),
        starting: bool = False,
    ) -> None:
        """Take over the whole catalog, as messages.Catalog has it.

        labels: None keeps those known. models: configured names; None: those that have versions.
        """
        new_versions = [VersionInfo(*version) for version in versions]
        new_labels = self._labels if labels is None else {name: dict(those) for name, those in labels.items()}
        new_names = sorted({info.name for info in new_versions} if models is None else models)
        new_pads = frozenset(pads)
        before = (self._versions, self._labels, self._names, self.pads, self.starting)
        if (new_versions, new_labels, new_names, new_pads, starting) == before:
            return
        self._take(new_versions, new_labels, new_pads)
        self._names, self.pads, self.starting = new_names, new_pads, starting
        self.epoch += 1
        for changed in list(self._watchers.values()):
            changed()

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after every update that changes anything, with the new epoch. Returns what ends that."""
        key = object()
        self._watchers[key] = changed
        return lambda: self._unwatch(key)

    def _unwatch(self, key: object) -> None:
        self._watchers.pop(key, None)

    def _take(
        self, new_versions: list[VersionInfo], new_labels: Mapping[str, Mapping[str, int]], new_pads: frozenset[str]
    ) -> None:
        models: dict[str, _Model] = {}
        # Newest first: the order of GetModelStatus, and the first AVAILABLE one met is the latest.
        for info in sorted(new_versions, key=lambda version: -version.version):
            model = models.setdefault(info.name, _Model())
            model.statuses.append(VersionStatus(*info[1:5], tuple(info.notes)))
            if info.state == VersionState.AVAILABLE:
                pads = info.name in new_pads
                servable = self._known(info, pads) or servable_view(*info[:2], info.signature_defs, pads)
                model.servables[info.version] = servable
                if model.latest is None:
                    model.latest = servable
        for name, those in new_labels.items():
            if name in models:
                models[name].labels = those
        self._versions, self._labels, self._models = new_versions, new_labels, models

    def _known(self, info: VersionInfo, pads: bool) -> ServableView | None:
        """The view made for an earlier update, when it would be the same now."""
        model = self._models.get(info.name)
        servable = model.servables.get(info.version) if model is not None else None
        if servable is None or (servable.signature_defs, servable.pads) != (info.signature_defs, pads):
            return None
        return servable

    def resolve(self, name: str, version: int | None = None, label: str | None = None) -> ServableView | Failure:
        """The AVAILABLE version meant: that number, that label's, or else the highest. A label goes before a number."""
        if not name:
            return Failure(Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        model = self._models.get(name)
        if label is not None:
            version = model.labels.get(label) if model is not None else None
            if version is None and self.starting:
                return self._missing(name)
            if version is None:
                return Failure(Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        if version is None:
            if model is None or model.latest is None:
                return self._missing(name, f"Servable not found for request: Latest({name})")
            return model.latest
        servable = model.servables.get(version) if model is not None else None
        if servable is None:
            return self._missing(name, f"Servable not found for request: Specific({name}, {version})")
        return servable

    def _missing(self, name: str, text: str = "") -> Failure:
        """While TF Serving loads the models of its start its ports are closed, which clients see as UNAVAILABLE and
        wait for; scripts take "Servable not found" for the sign that it is ready. A status is the same: before the
        broker has told what it knows, "no such model" would be a guess."""
        if self.starting:
            return Failure(Code.UNAVAILABLE, f"The server is starting: model {name} may not be loaded yet. Try again.")
        return Failure(Code.NOT_FOUND, text)

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus] | Failure:
        """All versions ever seen of a model, newest first, or the one asked for."""
        model = self._models.get(name)
        if version is not None:
            found = [] if model is None else [status for status in model.statuses if status.version == version]
            return found or self._missing(name, f"Could not find version {version} of model {name}")
        if model is None:
            return self._missing(name, f"Could not find any versions of model {name}")
        return list(model.statuses)

    def names(self) -> list[str]:
        """Every configured model's name, sorted; also of those without a version."""
        return list(self._names)

    def labels(self, name: str) -> dict[str, int]:
        """The labels of a model that are assigned now: label -> version."""
        return dict(self._labels.get(name, {}))


def servable_view(name: str, version: int, signature_defs: bytes, pads: bool = False) -> ServableView:
    """Read a serialized SignatureDefMap. A worker of ours made it, so bytes that do not parse raise (a bug)."""
    parsed = SignatureDefMap.FromString(signature_defs)
    signatures = {key: _signature_view(key, parsed.signature_def[key]) for key in sorted(parsed.signature_def)}
    return ServableView(name, version, signatures, signature_defs, pads)


def _signature_view(name: str, signature: Any) -> SignatureView:
    inputs = {alias: _tensor_spec(alias, signature.inputs[alias]) for alias in sorted(signature.inputs)}
    outputs = {alias: _tensor_spec(alias, signature.outputs[alias]) for alias in sorted(signature.outputs)}
    defaults = {}
    # An older protobuf definition of SignatureDef has no defaults.
    for alias in sorted(getattr(signature, "defaults", ())):
        defaults[alias] = decode(signature.defaults[alias], alias, _DEFAULT_BYTES_MAX)
    return SignatureView(
        name=name,
        method_name=signature.method_name,
        inputs=inputs,
        outputs=outputs,
        defaults=defaults,
        rows_joinable=bool(inputs) and all(spec.has_row_axis for spec in inputs.values()),
        output_aliases=tuple(outputs),
    )


def _tensor_spec(alias: str, info: Any) -> TensorSpec:
    shape = info.tensor_shape
    # A TensorInfo without a shape says nothing; protobuf reads it as a scalar, so presence is asked for.
    unknown = shape.unknown_rank or not info.HasField("tensor_shape")
    dtype = info.dtype - _REFERENCE if info.dtype > _REFERENCE else info.dtype
    return TensorSpec(alias, dtype, None if unknown else tuple(dim.size for dim in shape.dim), info.name)
