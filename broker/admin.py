"""Operators' calls that change what is configured, one change after the other; and the config file, read again.

| verb       | body                                           | answer                                      |
|------------|------------------------------------------------|---------------------------------------------|
| `reload`   | ModelServerConfig: exactly these models        | JSON {"models": {name: "OK" or why not}}    |
| `config`   | nothing                                        | ModelServerConfig as it is now              |
| `add`      | ModelConfig: one more, or in place of its name | as for reload, of this model                |
| `remove`   | a model's name                                 | nothing                                     |
| `labels`   | JSON {"model": M, "labels": {label: version}}  | nothing                                     |
| `batching` | JSON {"model": M, "batching": {key: value}}    | nothing                                     |

The messages are serialized. `reload` and `add` are answered when every model that is new, or moved, has an AVAILABLE
version or has failed; a change that fails is undone as a whole. The other verbs are in `operators.py`.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from ringserve.broker.changes import Change, Ended, describe
from ringserve.broker.labels import Labels
from ringserve.broker.lifecycle import Lifecycle
from ringserve.broker.messages import Code, Failure, ModelOptions
from ringserve.broker.setup import Policies, plan_of
from ringserve.broker.state_file import State
from ringserve.config.limits import mistakes_of_batching
from ringserve.config.model_config import ModelConfigError, config_of, model_of, models_of
from ringserve.config.protos import ModelConfig, ModelServerConfig
from ringserve.config.schema import Batching, Model
from ringserve.config.values import parse_batching

log = logging.getLogger(__name__)

_OK = Failure(Code.OK, "")
_WRONG_KIND = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
)
_TRANSITION = (
    "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to another."
)
#: A config file that could not be applied is tried again after this long although it has not changed.
_FILE_AGAIN_NS = 60_000_000_000
#: So is saving a configuration for which there was no room.
_SAVE_AGAIN_NS = 5_000_000_000

#: Gives the answer to a call: (outcome, body).
Answer = Callable[[Failure, bytes], None]


class Refused(Exception):
    """A call that cannot be carried out; nothing has been changed."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.failure = Failure(Code(code), text)


class FileRead(NamedTuple):
    """A look at model_config_file. digest: of its content, empty when it could not be read. config: what it says, None
    when the content is as it was, or when `error` says what is wrong with it."""

    digest: str
    config: Any
    error: str


class Admin:
    """The configured models, and who may change them. Owns neither of the parts that it is given.

    defaults: the batching of a model that says nothing. look: (names, now, over): has the base paths of these models
    looked at, and calls `over`. tell_workers: sends them new options. save: keeps the state for a broker that
    follows; may raise OSError.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        labels: Labels,
        policies: Policies,
        defaults: Batching,
        *,
        look: Callable[[list[str], int, Callable[[], None]], None],
        tell_workers: Callable[[list[ModelOptions]], None],
        save: Callable[[State], None],
    ) -> None:
        self.models: tuple[Model, ...] = ()
        self._lifecycle = lifecycle
        self._labels = labels
        self._policies = policies
        self._defaults = defaults
        self._look = look
        self._tell_workers = tell_workers
        self._save = save
        self._change: Change | None = None
        self._waiting: deque[tuple[Callable[[int], None], Answer]] = deque()
        self._file_digest = ""
        self._file_failed_ns = 0
        self._file_said = ""
        self._now_ns = 0
        self._save_again_ns = 0
        self.epoch = 0

    # -------------------------------------------------------------------------------------------------- the start

    def start(self, state: State, now_ns: int) -> None:
        """Take up this configuration, without asking whether it can be carried out."""
        self._file_digest = state.file_digest
        self._set(state.models, now_ns)

    @property
    def changing(self) -> bool:
        """A change is under way, or waits for one that is."""
        return self._change is not None or bool(self._waiting)

    # ------------------------------------------------------------------------------------------------------ calls

    def ask(self, verb: str, body: bytes, answer: Answer) -> None:
        """An operator's call; it is carried out when those before it are over. An unknown verb raises KeyError."""
        if verb == "config":
            answer(_OK, config_of(self.models, self._defaults).SerializeToString())
            return
        carry_out = {
            "reload": self._reload,
            "add": self._add,
            "remove": self._remove,
            "labels": self._assign,
            "batching": self._batching,
        }[verb]
        self._waiting.append((lambda now_ns: carry_out(body, answer, now_ns), answer))

    def file_digest(self, now_ns: int, *, now: bool = False) -> str:
        """Of the content of the config file that needs no second thought. now: an operator asks for it."""
        if self._file_failed_ns and (now or now_ns >= self._file_failed_ns + _FILE_AGAIN_NS):
            self._file_failed_ns = 0
            return ""
        return self._file_digest

    def file_read(self, read: FileRead) -> None:
        """The config file was looked at."""
        if read.error and read.error != self._file_said:
            log.error("Failed to read ModelServerConfig file: %s", read.error)
        self._file_said = read.error
        if read.config is None:
            return
        self._file_digest = read.digest
        self._waiting.append(
            (lambda now_ns: self._apply_file(read, now_ns), lambda failure, _: self._file_over(failure))
        )

    # ----------------------------------------------------------------------------------------------- carrying out

    def turn(self, now_ns: int) -> None:
        """Go on with the change under way, and begin the next when it is over."""
        self._now_ns = now_ns
        if 0 < self._save_again_ns <= now_ns:
            self._keep(now_ns)
        while True:
            if self._change is not None:
                ended = self._change.progress(self._lifecycle, self._labels, now_ns)
                if ended is None:
                    return
                change, self._change = self._change, None
                if ended.failure.code is Code.OK:
                    self._set(change.after, now_ns)
                else:
                    self._policies.configure(change.before)
                    self._lifecycle.configure([plan_of(model) for model in change.before], now_ns)
                change.over(ended)
            if not self._waiting:
                return
            carry_out, answer = self._waiting.popleft()
            try:
                carry_out(now_ns)
            except (Refused, ModelConfigError) as error:
                failure = error.failure if isinstance(error, Refused) else Failure(Code(error.code), error.text)
                answer(failure, b"")

    def _set(self, models: tuple[Model, ...], now_ns: int) -> None:
        self.models = models
        self._tell_workers(self._policies.configure(models))
        self._lifecycle.configure([plan_of(model) for model in models], now_ns)
        self._labels.configure({model.name: dict(model.labels) for model in models})
        self._labels.settle(self._lifecycle.is_available)
        self.epoch += 1
        self._keep(now_ns)

    def _keep(self, now_ns: int) -> None:
        """Save the configuration. Where that fails the change holds all the same, and saving is tried again."""
        try:
            self._save(State(self.models, self._file_digest))
            self._save_again_ns = 0
        except OSError as error:
            log.error("The configuration cannot be saved, and another broker would not know of this change: %s", error)
            self._save_again_ns = now_ns + _SAVE_AGAIN_NS

    def _begin(self, after: tuple[Model, ...], checked: list[str], over: Callable[[Ended], None], now_ns: int) -> None:
        change = self._change = Change(self.models, after, checked, over)
        self._policies.configure(change.between())
        change.begin(self._lifecycle, now_ns)
        # Never wait for the next poll, which may be never.
        self._look([model.name for model in after], now_ns, lambda: setattr(change, "looked", True))

    def _reload(self, body: bytes, answer: Answer, now_ns: int) -> None:
        config = _parsed(ModelServerConfig, body)
        if config.WhichOneof("config") != "model_config_list":
            raise Refused(Code.INVALID_ARGUMENT, _WRONG_KIND)
        after = self._keep_batching(models_of(config, self._defaults, self.models))
        self._begin(after, [model.name for model in after], _answered(answer), now_ns)

    def _apply_file(self, read: FileRead, now_ns: int) -> None:
        if read.config.WhichOneof("config") is None and not self.models:
            log.info("Taking no action for empty config.")
            return
        if read.config.WhichOneof("config") != "model_config_list":
            raise Refused(Code.FAILED_PRECONDITION, _TRANSITION)
        after = self._keep_batching(models_of(read.config, self._defaults, self.models))
        names = [model.name for model in after]
        self._begin(after, names, lambda ended: self._file_over(ended.failure), now_ns)

    def _file_over(self, failure: Failure) -> None:
        if failure.code is not Code.OK:
            log.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", describe(failure))
            self._file_failed_ns = self._now_ns
        else:
            self._file_failed_ns = 0

    def _add(self, body: bytes, answer: Answer, now_ns: int) -> None:
        (model,) = self._keep_batching((model_of(_parsed(ModelConfig, body), self._defaults, self.models),))
        if any(known.name == model.name for known in self.models):
            after = tuple(model if known.name == model.name else known for known in self.models)
        else:
            after = (*self.models, model)
        self._begin(after, [model.name], _answered(answer, model.name), now_ns)

    def _remove(self, body: bytes, answer: Answer, now_ns: int) -> None:
        name = self._known(body.decode(errors="replace")).name
        self._set(tuple(model for model in self.models if model.name != name), now_ns)
        answer(_OK, b"")

    def _assign(self, body: bytes, answer: Answer, now_ns: int) -> None:
        name, labels = _json(body, "labels")
        if not all(isinstance(version, int) and not isinstance(version, bool) for version in labels.values()):
            raise Refused(Code.INVALID_ARGUMENT, "a label's version must be a number")
        model = self._known(name)
        refusal = self._labels.refusal(name, labels, self._lifecycle.is_available)
        if refusal is not None:
            raise Refused(*refusal)
        self._replace(replace(model, labels=tuple(sorted(labels.items()))), now_ns)
        answer(_OK, b"")

    def _batching(self, body: bytes, answer: Answer, now_ns: int) -> None:
        name, table = _json(body, "batching")
        model = self._known(name)
        overrides, wrong = parse_batching(table)
        batching = replace(model.batching, **overrides)
        mistakes = [f"{key}: {text}" for key, text in wrong.items()] or mistakes_of_batching("batching", batching)
        if mistakes:
            raise Refused(Code.INVALID_ARGUMENT, "; ".join(mistakes))
        self._replace(replace(model, batching=batching), now_ns)
        answer(_OK, b"")

    def _replace(self, changed: Model, now_ns: int) -> None:
        """The same models, one of them with other labels or batching: nothing is to be loaded."""
        self._set(tuple(changed if model.name == changed.name else model for model in self.models), now_ns)

    def _known(self, name: str) -> Model:
        for model in self.models:
            if model.name == name:
                return model
        raise Refused(Code.NOT_FOUND, f"Model {name} is not configured")

    def _keep_batching(self, models: tuple[Model, ...]) -> tuple[Model, ...]:
        """TF Serving's configuration has no word for batching: a model that says nothing keeps what it has."""
        before = {model.name: model.batching for model in self.models}
        return tuple(
            replace(model, batching=before.get(model.name, self._defaults))
            if model.batching == self._defaults
            else model
            for model in models
        )


def _answered(answer: Answer, only: str = "") -> Callable[[Ended], None]:
    """Answers with the JSON of what became of the models (of that one)."""

    def over(ended: Ended) -> None:
        models = {name: text for name, text in ended.models.items() if not only or name == only}
        answer(ended.failure, json.dumps({"models": models}).encode())

    return over


def _parsed(message_class: Any, body: bytes) -> Any:
    try:
        return message_class.FromString(body)
    except DecodeError as error:
        raise Refused(Code.INVALID_ARGUMENT, f"not a serialized {message_class.DESCRIPTOR.full_name}") from error


def _json(body: bytes, key: str) -> tuple[str, Mapping[str, Any]]:
    """The model and the table of `{"model": ..., key: {...}}`."""
    try:
        data = json.loads(body)
        name, table = data["model"], data[key]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(Code.INVALID_ARGUMENT, f'expected JSON {{"model": name, "{key}": {{...}}}}') from error
    if not isinstance(name, str) or not isinstance(table, dict):
        raise Refused(Code.INVALID_ARGUMENT, f'expected JSON {{"model": name, "{key}": {{...}}}}')
    return name, table
