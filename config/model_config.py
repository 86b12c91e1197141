"""TF Serving's ModelServerConfig, text format or JSON, as our models, and our models as ModelServerConfig.

    read_model_config(path) / parse_model_config(text) -> ModelServerConfig -> models_of -> tuple of Model
                                                          ModelServerConfig <- config_of <-

The messages that go in and out are of the official class; our own fields in a ModelConfig (its batching) travel in
them as unknown fields (see config_protos.py) and come to light here only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, Final

from google.protobuf import json_format, text_format

from ringserve.config.batching_params import batching_of as batching_of
from ringserve.config.batching_params import read_version_batching as read_version_batching
from ringserve.config.config_protos import (
    ExtendedModelConfig,
    ExtendedModelServerConfig,
    VersionPolicy,
    extended,
    official,
)
from ringserve.config.limits import mistakes_of_batching
from ringserve.config.protos import ModelConfig
from ringserve.config.schema import Batching, Model, Versions
from ringserve.config.text_protos import ModelConfigError as ModelConfigError
from ringserve.config.text_protos import invalid, parse_json, parse_text, read_message
from ringserve.config.values import latest, parse_batching, parse_versions

PLATFORM: Final = "tensorflow"
_UNIMPLEMENTED: Final = 12
_MODEL_TYPE_TENSORFLOW: Final = 1
_SCHEME: Final = re.compile(r"([a-zA-Z][0-9a-zA-Z.]*)://")


# ------------------------------------------------------------------------------------------------------------- reading


def read_model_config(path: str) -> Any:
    """The ModelServerConfig in that file; an empty file is an empty one. Raises ModelConfigError."""
    return read_message(path, parse_model_config)


def parse_model_config(text: str) -> Any:
    """A ModelServerConfig from its text format, or from JSON. Raises ModelConfigError; its text names the place."""
    if text.lstrip().startswith("{"):
        return official(parse_json(text, ExtendedModelServerConfig, _prepare_server_config))
    return official(parse_text(text, ExtendedModelServerConfig))


def parse_model(text: str) -> Any:
    """One ModelConfig likewise."""
    if text.lstrip().startswith("{"):
        message = parse_json(text, ExtendedModelConfig, _prepare_model)
    else:
        message = parse_text(text, ExtendedModelConfig)
    return ModelConfig.FromString(message.SerializeToString())


def config_dict(config: Any) -> dict[str, Any]:
    """A ModelServerConfig or ModelConfig as JSON's values, our fields included, in the names of the .proto files."""
    told: dict[str, Any] = json_format.MessageToDict(extended(config), preserving_proto_field_name=True)
    return told


def config_text(config: Any) -> str:
    """The same in the text format."""
    return text_format.MessageToString(extended(config))


def _prepare_server_config(data: Any) -> Any:
    for name in ("model_config_list", "modelConfigList"):
        if name in data and isinstance(data[name].get("config"), list):
            for model in data[name]["config"]:
                _prepare_model(model)
    return data


def _prepare_model(data: Any) -> Any:
    """Wrapped numbers may be written `{"value": 32}` as in the text format, and our own values without quotes."""
    for name in ("batching_parameters", "batchingParameters"):
        if name in data:
            data[name] = {key: _unwrapped(value) for key, value in data[name].items()}
    if "batching" in data:
        data["batching"] = {key: _as_text(value) for key, value in data["batching"].items()}
    return data


def _unwrapped(value: Any) -> Any:
    return value["value"] if isinstance(value, dict) and set(value) == {"value"} else value


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


# ------------------------------------------------------------------------------------------------------------- meaning


def models_of(config: Any, defaults: Batching, before: Iterable[Model] = ()) -> tuple[Model, ...]:
    """The models of a ModelServerConfig, in its order. Raises ModelConfigError with TF Serving's texts, and before
    anything is done about the models: nothing is half-applied.

    defaults: the batching of a model that says nothing. before: the models so far, whose platform must not change.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid("custom_model_config is not supported: only model_config_list is")
    listed = list(extended(config).model_config_list.config)
    names: set[str] = set()
    for message in listed:
        if message.name in names:
            raise invalid(f"Illegal to list model {message.name} multiple times in config list")
        names.add(message.name)
        _check_base_path(message.name, message.base_path)
    platforms = {model.name: model.platform for model in before}
    for message in listed:
        platform = _platform(message)
        known = platforms.get(message.name, platform)
        if platform != known:
            raise invalid(
                f"Illegal to change a model's platform. For model {message.name} platform was {known} "
                f"and new platform requested is {platform}"
            )
    return tuple(_model(message, defaults) for message in listed)


def model_of(config: Any, defaults: Batching, before: Iterable[Model] = ()) -> Model:
    """The model of one ModelConfig. Raises as `models_of` does."""
    whole = ExtendedModelServerConfig()
    whole.model_config_list.config.append(extended(config))
    (model,) = models_of(whole, defaults, before)
    return model


def _check_base_path(name: str, base_path: str) -> None:
    scheme = _SCHEME.match(base_path)
    if scheme is None and not os.path.isabs(base_path):
        raise invalid(f"Expected model {name} to have an absolute path or URI; got base_path()={base_path}")
    if scheme is not None and not base_path.startswith("file:///"):
        text = f"model {name}: File system scheme '{scheme[1]}' not implemented (file: '{base_path}')"
        raise ModelConfigError(_UNIMPLEMENTED, text)


def _platform(message: Any) -> str:
    """TF Serving's checks of model_type and model_platform."""
    old, new = "ModelServerConfig::model_type (deprecated)", "ModelServerConfig::model_platform"
    if message.model_type and message.model_platform:
        raise invalid(f"Illegal setting both {old} and {new}, model name is {message.name}")
    if message.model_type:
        if message.model_type != _MODEL_TYPE_TENSORFLOW:
            raise invalid(f"ModelServerConfig::model_type choice {message.model_type} not supported.")
        return PLATFORM
    if not message.model_platform:
        raise invalid(f"Illegal setting neither {old} nor {new}, model name is {message.name}")
    return str(message.model_platform)


def _model(message: Any, defaults: Batching) -> Model:
    platform = _platform(message)
    if platform != PLATFORM:
        raise invalid(f"Model {message.name} requests unsupported platform {platform}")
    if not message.name:
        raise invalid(f"the model of base_path {message.base_path} has no name")
    if message.HasField("logging_config"):
        raise invalid("No request-logger-creator provided.")
    return Model(
        name=message.name,
        base_path=message.base_path.removeprefix("file://"),
        versions=_versions(message.model_version_policy),
        batching=_batching(message, defaults),
        labels=tuple(sorted(message.version_labels.items())),
        platform=platform,
    )


def _versions(policy: Any) -> Versions:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return "all"
        case "specific":
            return tuple(sorted(set(policy.specific.versions)))
        case _:
            return latest(policy.latest.num_versions)


def parse_version_policy(text: str) -> Versions:
    """A model's versions as an operator may write them: `latest`, `latest:2`, `all`, `1,2`, or a policy in the text
    format (the message alone, or the field of a ModelConfig) or JSON. Raises ModelConfigError."""
    versions = parse_versions(text)
    if versions is not None:
        return versions
    if text.lstrip().startswith("model_version_policy"):
        return _versions(parse_model(text).model_version_policy)
    if text.lstrip().startswith("{"):
        return _versions(parse_json(text, VersionPolicy, lambda data: data))
    return _versions(parse_text(text, VersionPolicy))


def _batching(message: Any, defaults: Batching) -> Batching:
    batching = defaults
    if message.HasField("batching_parameters"):
        batching = batching_of(message.batching_parameters, batching)
    overrides, wrong = parse_batching(dict(sorted(message.batching.items())))  # maps have no order of their own
    place = f"model {message.name!r}"
    mistakes = [f"{place}: batching: {key}: {text}" for key, text in wrong.items()]
    batching = replace(batching, **overrides)
    mistakes += mistakes_of_batching(place, batching)
    if mistakes:
        raise invalid("; ".join(mistakes))
    return batching


# ------------------------------------------------------------------------------------------------------- the way back


def config_of(models: Iterable[Model], defaults: Batching | None = None) -> Any:
    """The ModelServerConfig (official class) of which `models_of`, with the same defaults, makes these models."""
    config = ExtendedModelServerConfig()
    config.model_config_list.SetInParent()  # an empty list is a list, which may be replaced by another
    for model in models:
        message = config.model_config_list.config.add()
        message.name, message.base_path, message.model_platform = model.name, model.base_path, model.platform
        _set_versions(message, model.versions)
        for label, version in model.labels:
            message.version_labels[label] = version
        base = defaults or Batching()
        for field in fields(Batching):
            value = getattr(model.batching, field.name)
            if value != getattr(base, field.name):
                message.batching[field.name] = _as_text(value)
    return official(config)


def _set_versions(message: Any, versions: Versions) -> None:
    policy = message.model_version_policy
    if versions == "all":
        policy.all.SetInParent()
    elif isinstance(versions, tuple):
        policy.specific.SetInParent()
        policy.specific.versions.extend(versions)
    elif versions != "latest":
        policy.latest.num_versions = int(versions.partition(":")[2])
