"""ModelServerConfig as models and back: spec 1.3 (reading), 2.3 (syntax), 5.3 (policies), 5.7 (labels), 5.8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.config.model_config import (
    ModelConfigError,
    config_dict,
    config_of,
    config_text,
    model_of,
    models_of,
    parse_model,
    parse_model_config,
    parse_version_policy,
    read_model_config,
)
from ringserve.config.protos import ModelConfig, ModelServerConfig
from ringserve.config.schema import Batching, Model, Versions

_BASE = Batching(batch_rows_max=64, spread_us=7)


def _models(text: str, before: tuple[Model, ...] = ()) -> tuple[Model, ...]:
    return models_of(parse_model_config(text), _BASE, before)


def _config(inside: str = "", name: str = "m", base_path: str = "/models/m") -> str:
    return f'model_config_list {{ config {{ name: "{name}" base_path: "{base_path}" {inside} }} }}'


def _tensorflow(inside: str = "", base_path: str = "/models/m") -> str:
    return _config(f'model_platform: "tensorflow" {inside}', base_path=base_path)


def _model(**more: Any) -> Model:
    return Model("m", "/models/m", **{"batching": _BASE, **more})


# -------------------------------------------------------------------------------------------------------------- syntax


@pytest.mark.parametrize(
    "text",
    [
        "model_config_list { config { name: 'm' base_path: '/models/m' model_platform: 'tensorflow' } }",
        'model_config_list: { config: { name: "m", base_path: "/models/m"; model_platform: "tensorflow" }, }',
        "# one\nmodel_config_list { config [ { name: 'm' base_path: '/models/m' model_platform: 'tensorflow' } ] }",
        "model_config_list { config { name: 'm' base_path: '/models/m' model_type: TENSORFLOW } }",
        "model_config_list { config { name: 'm' base_path: 'file:///models/m' model_platform: 'tensorflow' } }",
        '{"model_config_list": {"config": [{"name": "m", "base_path": "/models/m", "model_platform": "tensorflow"}]}}',
        '\n {"modelConfigList": {"config": [{"name": "m", "basePath": "/models/m", "modelPlatform": "tensorflow"}]}}',
    ],
)
def test_2_3_ways_to_write_one_model(text: str) -> None:
    assert _models(text) == (_model(),)
    assert type(parse_model_config(text)) is ModelServerConfig


@pytest.mark.parametrize("text", ["", " \n# nothing\n", "model_config_list {}", "{}", '{"model_config_list": {}}'])
def test_5_8_an_empty_configuration_is_legal(text: str) -> None:
    assert _models(text) == ()


def test_5_8_an_empty_list_is_told_from_no_list() -> None:
    assert parse_model_config("").WhichOneof("config") is None
    assert parse_model_config("model_config_list {}").WhichOneof("config") == "model_config_list"
    assert config_of(()).WhichOneof("config") == "model_config_list"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("improper model config list: {}", '1:1: Message type "tensorflow.serving.ModelServerConfig" has no field'),
        ("\n  model_config_list { config { nam: 'm' } }", '2:32: Message type "tensorflow.serving.ModelConfig" has no'),
        ("model_config_list {", '1:19: Expected "}"'),
        ("model_config_list { config { name: 'a' name: 'b' } }", "1:4"),
        ("model_config_list {} model_config_list {}", "1:"),
        ("model_config_list { config { model_type: NONE } }", "1:42: "),
        ('{"model_config_list": {"config": [}}', "1:35: "),
        ('{"model_config_list": {"config": [{"nam": "m"}]}}', "1:1: "),
        ('{"model_config_list": {"config": {"name": "m"}}}', "1:1: "),
        ('{"model_config_list": 3}', "1:1: "),
        ('{"model_config_list": {"config": [3]}}', "1:1: "),
        ('{"model_config_list": {"config": [{"batching": 3}]}}', "1:1: "),
        ('{"model_config_list": {"config": [{"batching_parameters": "x"}]}}', "1:1: "),
        ('{"a":' * 100_000, "1:1: nested too deeply"),
    ],
)
def test_1_3_text_that_does_not_parse(text: str, expected: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        parse_model_config(text)
    assert caught.value.code == 3
    start = "Error parsing text-format tensorflow.serving.ModelServerConfig: "
    assert caught.value.text.startswith(start + expected)
    assert "\n" not in caught.value.text


def test_1_3_a_file_that_does_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text("improper")
    with pytest.raises(ModelConfigError) as caught:
        read_model_config(str(path))
    assert caught.value.status == f"INVALID_ARGUMENT: Invalid protobuf file: '{path}'"
    assert caught.value.detail.startswith("Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1: ")
    path.write_bytes(b"\xff")
    with pytest.raises(ModelConfigError, match="Invalid protobuf file"):
        read_model_config(str(path))


def test_1_3_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError) as missing:
        read_model_config(f"{tmp_path}/none")
    assert missing.value.status == f"NOT_FOUND: {tmp_path}/none; No such file or directory"
    with pytest.raises(ModelConfigError) as folder:
        read_model_config(str(tmp_path))
    assert folder.value.status == f"FAILED_PRECONDITION: {tmp_path}; Is a directory"


def _code(text: str) -> int:
    """The code that parsing ends with."""
    try:
        parse_model_config(text)
    except ModelConfigError as error:
        return error.code
    return 0


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    assert _code(text) in (0, 3)


_KEYS = st.sampled_from(["model_config_list", "config", "name", "batching", "batching_parameters", "value", "x"])
_LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner)))
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    assert _code(json.dumps({"model_config_list": value})) in (0, 3)
    assert _code(json.dumps({"model_config_list": {"config": [value]}})) in (0, 3)


# -------------------------------------------------------------------------------------------------- policies and labels


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", "latest"),
        ("latest {}", "latest"),
        ("latest { num_versions: 0 }", "latest"),
        ("latest { num_versions: 1 }", "latest"),
        ("latest { num_versions: 3 }", "latest:3"),
        ("all {}", "all"),
        ("specific { versions: 42 versions: 7 versions: 42 }", (7, 42)),
        ("specific { versions: [42, 7] }", (7, 42)),
        ("specific {}", ()),
    ],
)
def test_5_3_version_policies(policy: str, expected: Versions) -> None:
    (model,) = _models(_tensorflow(f"model_version_policy {{ {policy} }}"))
    assert model.versions == expected
    assert parse_version_policy(policy) == expected
    assert parse_version_policy(f"model_version_policy: {{ {policy} }}") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", "latest"),
        (" all ", "all"),
        ("latest:1", "latest"),
        ("latest:4", "latest:4"),
        ("2,1, 2", (1, 2)),
        ("7", (7,)),
        ('{"latest": {"num_versions": 2}}', "latest:2"),
        ('{"all": {}}', "all"),
        ('{"specific": {"versions": [3, "4"]}}', (3, 4)),
    ],
)
def test_version_policies_as_operators_write_them(text: str, expected: Versions) -> None:
    assert parse_version_policy(text) == expected


@pytest.mark.parametrize("text", ["newest", "latest:0", "latest:-1", "1,,2", "1;2", '{"newest": {}}'])
def test_version_policies_that_are_none(text: str) -> None:
    with pytest.raises(ModelConfigError):
        parse_version_policy(text)


def test_5_7_labels() -> None:
    labels = "version_labels { key: 'stable' value: 42 } version_labels { key: 'canary' value: 43 }"
    assert _models(_tensorflow(labels)) == (_model(labels=(("canary", 43), ("stable", 42))),)


# ------------------------------------------------------------------------------------------------------------- refusals

_OLD, _NEW = "ModelServerConfig::model_type (deprecated)", "ModelServerConfig::model_platform"


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (
            "model_config_list { config { name: 'm' base_path: '/a' } config { name: 'm' base_path: '/b' } }",
            3,
            "Illegal to list model m multiple times in config list",
        ),
        (
            _tensorflow(base_path="models/m"),
            3,
            "Expected model m to have an absolute path or URI; got base_path()=models/m",
        ),
        (_tensorflow(base_path=""), 3, "Expected model m to have an absolute path or URI; got base_path()="),
        (_tensorflow("model_type: TENSORFLOW"), 3, f"Illegal setting both {_OLD} and {_NEW}, model name is m"),
        (_config(), 3, f"Illegal setting neither {_OLD} nor {_NEW}, model name is m"),
        (_config("model_type: OTHER"), 3, "ModelServerConfig::model_type choice 2 not supported."),
        (_config('model_platform: "caffe{}"'), 3, "Model m requests unsupported platform caffe{}"),
        (_tensorflow("logging_config {}"), 3, "No request-logger-creator provided."),
        (_config('model_platform: "tensorflow"', name=""), 3, "the model of base_path /models/m has no name"),
        (
            _tensorflow(base_path="gs://bucket/m"),
            12,
            "model m: File system scheme 'gs' not implemented (file: 'gs://bucket/m')",
        ),
        (
            _tensorflow(base_path="file://host/m"),
            12,
            "model m: File system scheme 'file' not implemented (file: 'file://host/m')",
        ),
        (
            'custom_model_config { type_url: "x" }',
            3,
            "custom_model_config is not supported: only model_config_list is",
        ),
    ],
)
def test_5_8_refusals(text: str, code: int, expected: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        _models(text)
    assert (caught.value.code, caught.value.text) == (code, expected)


def test_5_8_a_platform_must_not_change() -> None:
    before = (Model("m", "/models/m", platform="tensorflow"), Model("other", "/o", platform="torch"))
    assert _models(_tensorflow(), before) == (_model(),)
    with pytest.raises(ModelConfigError) as caught:
        _models(_config('model_platform: "torch"'), before)
    assert caught.value.text == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is torch"
    )


def test_5_8_a_good_model_does_not_save_a_bad_one_beside_it() -> None:
    text = _tensorflow() [: -len("}")] + "config { name: 'n' base_path: '/n' } }"
    with pytest.raises(ModelConfigError, match="Illegal setting neither"):
        _models(text)


# -------------------------------------------------------------------------------------------------- batching of a model


def test_json_with_batching_parameters_of_one_model() -> None:
    """As a common guide prints it: wrapped numbers, plain numbers, both spellings."""
    inline = [
        {"max_batch_size": {"value": 32}, "batch_timeout_micros": {"value": 5000}, "num_batch_threads": {"value": 4}},
        {"max_batch_size": 32, "batch_timeout_micros": 5000, "num_batch_threads": 4},
        {"maxBatchSize": {"value": "32"}, "batchTimeoutMicros": "5000", "num_batch_threads": 4},
    ]
    for number, parameters in enumerate(inline):
        key = "batchingParameters" if number == 2 else "batching_parameters"
        model = {
            "name": "m",
            "base_path": "/models/m",
            "model_platform": "tensorflow",
            "model_version_policy": {"latest": {"num_versions": 2}},
            key: parameters,
        }
        other = {**model, "name": "n", "model_version_policy": {"all": {}}}
        del other[key]
        first, second = _models(json.dumps({"model_config_list": {"config": [model, other]}}))
        assert first.versions == "latest:2"
        assert (first.batching.policy, first.batching.batch_rows_max) == ("timeout", 32)
        assert (first.batching.batch_wait_us_max, first.batching.batches_at_once_max) == (5000, 4)
        assert first.batching.spread_us == 7
        assert second == Model("n", "/models/m", "all", _BASE)


def test_text_with_batching_of_one_model() -> None:
    parameters = _models(_tensorflow("batching_parameters { max_batch_size { value: 8 } }"))[0].batching
    assert (parameters.policy, parameters.batch_rows_max, parameters.request_rows_max) == ("timeout", 8, 8)
    ours = _models(_tensorflow("batching { key: 'batch_rows_max' value: '8' }"))[0].batching
    assert ours == Batching(batch_rows_max=8, spread_us=7)


def test_json_with_our_batching_of_one_model() -> None:
    text = '{"name": "m", "base_path": "/models/m", "model_platform": "tensorflow", "batching": %s}'
    message = parse_model(text % '{"batch_rows_max": 8, "split": false, "policy": "none"}')
    assert type(message) is ModelConfig
    assert model_of(message, _BASE).batching == Batching("none", 8, split=False, spread_us=7)
    with pytest.raises(ModelConfigError) as caught:
        model_of(parse_model(text % '{"batch_rws_max": 8, "split": "perhaps"}'), _BASE)
    assert caught.value.text == (
        "model 'm': batching: batch_rws_max: no such setting of [batching]; did you mean 'batch_rows_max'?; "
        "model 'm': batching: split: 'perhaps' is not true or false"
    )
    with pytest.raises(ModelConfigError, match="queue_rows_max"):
        model_of(parse_model(text % '{"queue_rows_max": 1}'), _BASE)


def test_6_1_a_models_batching_parameters_are_checked() -> None:
    with pytest.raises(ModelConfigError, match="batch_timeout_micros must be non-negative; was -1"):
        _models(_tensorflow("batching_parameters { batch_timeout_micros { value: -1 } }"))


# --------------------------------------------------------------------------------------------------------- the way back

_NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
_VERSION = st.integers(0, 2**63 - 1)
_VERSIONS = st.one_of(
    st.sampled_from(["latest", "all"]),
    st.integers(2, 2**32 - 1).map(lambda count: f"latest:{count}"),
    st.lists(_VERSION).map(lambda numbers: tuple(sorted(set(numbers)))),
)
_BATCHINGS = st.builds(
    Batching,
    policy=st.sampled_from(["adaptive", "timeout", "none"]),
    batch_rows_max=st.integers(1, 1000),
    split=st.booleans(),
    pad_inputs=st.booleans(),
    pad_with=st.sampled_from(["zero", "first"]),
    row_independence=st.sampled_from(["tried", "assumed"]),
    batch_rows_allowed=st.sampled_from(["", "8,1000"]),
    queue_batches_max=st.integers(0, 9),
)
_MODELS = st.lists(
    st.builds(
        Model,
        name=_NAMES,
        base_path=_NAMES.map(lambda name: f"/{name}"),
        versions=_VERSIONS,
        batching=_BATCHINGS,
        labels=st.dictionaries(_NAMES, _VERSION).map(lambda labels: tuple(sorted(labels.items()))),
    ),
    unique_by=lambda model: model.name,
)


@given(_MODELS, _BATCHINGS)
def test_config_of_is_the_inverse_of_models_of(models: list[Model], defaults: Batching) -> None:
    config = config_of(models, defaults)
    assert type(config) is ModelServerConfig
    assert models_of(config, defaults) == tuple(models)
    # Over the wire, as text, as JSON: our own fields survive each.
    assert models_of(ModelServerConfig.FromString(config.SerializeToString()), defaults) == tuple(models)
    assert models_of(parse_model_config(config_text(config)), defaults) == tuple(models)
    assert models_of(parse_model_config(json.dumps(config_dict(config))), defaults) == tuple(models)


def test_an_official_client_reads_what_config_of_writes() -> None:
    (model,) = config_of((Model("m", "/m", "latest:2", labels=(("a", 1),)),)).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("m", "/m", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 2
    assert dict(model.version_labels) == {"a": 1}
