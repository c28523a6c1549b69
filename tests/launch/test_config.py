"""Recipes and overrides: how they are resolved, and the error messages for wrong ones."""

import json
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from data_prep.config import PrepareConfig
from launch.cluster.spec.load import launch_spec_class
from launch.config import _MAY_CHANGE, check_same_run, load_config, load_run_config, write_resolved
from launch.config_errors import ConfigError, all_keys
from launch.recipes import packaged_recipes
from pipeline.config import RunConfig
from pipeline.scaling.battery.settings import BatteryRecipe
from pipeline.scaling.ladder.recipe import LadderRecipe

DEMO = "configs/train/demo.yaml"


def message_of(*overrides: str, recipe: str | Path = DEMO) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run_config(recipe, overrides)
    message = str(caught.value)
    assert "pydantic" not in message
    assert "http" not in message
    return message


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_shipped_recipe_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # packaged files are also found outside a checkout
    kind = name.split("/")[1]
    if kind == "data":  # the command line gives input and output
        load_config(PrepareConfig, name, [], {"input": ["raw/*.jsonl"], "output": "made"})
    elif kind == "cluster":
        load_config(launch_spec_class(), name)
    elif kind == "scaling":
        load_config(LadderRecipe, name)
    elif kind == "battery":
        load_config(BatteryRecipe, name)
    else:
        assert kind == "train", f"add the configuration class of the recipes in configs/{kind} here"
        load_run_config(name)


@pytest.mark.parametrize("name", [DEMO, "train/demo.yaml", "train/demo", f"./{DEMO}"])
def test_a_shipped_recipe_has_short_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_run_config(name).model.size == "demo"


def test_a_local_file_takes_precedence_over_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "train").mkdir(parents=True)
    (tmp_path / DEMO).write_text("model: {size: nano}\ndata: {path: here}\ntrain: {steps: 7}\n")
    assert load_run_config(DEMO).train.steps == 7


def test_overrides_take_precedence_and_are_yaml() -> None:
    config = load_run_config(
        DEMO,
        [
            "train.steps=5",
            "optimizer.betas=[0.8, 0.9]",
            "optimizer.learning_rate=1e-4",
            "tracking.enabled=false",
            "train.steps=6",
        ],
    )
    assert config.train.steps == 6
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.optimizer.learning_rate == 1e-4
    assert config.tracking.enabled is False


def test_the_issue_s_example() -> None:
    message = message_of("model.d_modle=64")
    assert message == "override 'model.d_modle=64': unknown key model.d_modle; did you mean model.d_model?"


@pytest.mark.parametrize("key", sorted(key for key in all_keys(RunConfig) if "." in key and len(key.split(".")[1]) > 4))
def test_any_key_with_a_doubled_letter_gets_a_suggestion(key: str) -> None:
    wrong = key[:-2] + key[-2] + key[-2:]
    assert f"unknown key {wrong}; did you mean {key}?" in message_of(f"{wrong}=1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=many", "train.steps is 'many'; expected a whole number"),
        ("train.steps=1.5", "train.steps is 1.5; expected a whole number"),
        ("train.steps=-4", "train.steps is -4; expected a number greater than or equal to 0"),
        ("train.tokens=0", "train.tokens is 0; expected a number greater than 0"),
        ("train.epochs=-1", "train.epochs is -1; expected a number greater than 0"),
        ("train.steps=", "train.steps is empty; expected a whole number"),
        ("train=3", "train is 3; expected a section"),
        ("data.path=3", "data.path is 3; expected a path"),
        ("tracking.experiment=7", "tracking.experiment is 7; expected text"),
        ("tracking.enabled=perhaps", "tracking.enabled is 'perhaps'; expected true or false"),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9]; expected more values"),
        ("optimizer.betas.0=0.8", "optimizer.betas is {'0': 0.8}; expected a list"),
        ("model.attention_layout=botom", "did you mean bottom?"),
        ("model.size=giant", "model.size is 'giant': choose one of nano"),
        ("model.d_model=0", "model.d_model is 0: it must be at least 1"),
        ("mesh.tensor_parallel=3", "mesh.tensor_parallel 3 does not divide model.num_heads 4"),
        ("train.precision=fp16", "fp16 is refused"),
        ("modle.d_model=64", "unknown key modle; did you mean model?"),
        ("d_model=64", "unknown key d_model; did you mean model.d_model?"),
        ("steps=64", "unknown key steps; did you mean train.steps?"),
        ("model.zzz=64", "unknown key model.zzz; valid keys of model: d_model, d_ff"),
        ("optimizer.betas=[0.9", "the value is not YAML"),
        ("data.path=${nowhere}", "data.path cannot be resolved"),
        ("train.steps", "has no '=': write key=value"),
        ("=3", "is not a dotted key"),
    ],
)
def test_errors_name_the_wrong_override_and_the_remedy(override: str, expected: str) -> None:
    message = message_of(override)
    assert message.startswith(f"override {override!r}")
    assert expected in message
    assert "\n" not in message


def test_problems_of_a_file_are_named_with_their_line(recipe: Path) -> None:
    recipe.write_text("model: {size: nano}\ndata:\n  path: x\ntrian:\n  steps: 3\nmesh:\n  tensor_paralel: 2\n")
    message = message_of(recipe=recipe)
    assert message.splitlines() == [
        "2 problems in the configuration",
        f"  {recipe}:7: unknown key mesh.tensor_paralel; did you mean mesh.tensor_parallel?",
        f"  {recipe}:4: unknown key trian; did you mean train?",
    ]


def test_a_check_of_two_keys_names_the_one_in_the_file(recipe: Path) -> None:
    recipe.write_text("model: {size: nano}\ndata: {path: x}\ntrain: {steps: 3}\nmesh:\n  tensor_parallel: 3\n")
    assert message_of(recipe=recipe).startswith(f"{recipe}:5: mesh.tensor_parallel 3 does not divide")


def test_a_missing_key_is_named(recipe: Path) -> None:
    recipe.write_text("model: {size: nano}\ndata: {path: x}\ntrain: {seed: 3}\n")
    assert message_of(recipe=recipe) == f"{recipe}:3: the run has no length: give train.steps, train.tokens or train.epochs"
    recipe.write_text("model: {size: nano}\ndata: {}\ntrain: {steps: 3}\n")
    assert message_of(recipe=recipe) == f"{recipe}:2: data.path is missing; give it there, or data.path=VALUE"


def test_an_override_of_the_length_takes_the_place_of_the_recipes(recipe: Path) -> None:
    assert load_run_config(DEMO, ["train.tokens=2e9"]).train.model_dump(include={"steps", "tokens", "epochs"}) == {
        "steps": 0,
        "tokens": 2_000_000_000,
        "epochs": None,
    }
    assert load_run_config(DEMO, ["train.epochs=0.5"]).train.length == "train.epochs 0.5 (0 steps)"
    recipe.write_text("model: {size: nano}\ndata: {path: x}\ntrain:\n  tokens: 1000\n")
    assert load_run_config(recipe, ["train.steps=5"]).train.length == "train.steps 5"
    assert load_run_config(recipe).train.tokens == 1000
    both = ["train.tokens=5", "train.epochs=2"]
    assert message_of(*both) == (
        "override 'train.tokens=5', override 'train.epochs=2': train.tokens 5 and train.epochs 2.0 both give the length of the "
        "run: keep one of them"
    )
    recipe.write_text("model: {size: nano}\ndata: {path: x}\ntrain:\n  tokens: 1000\n  epochs: 3\n")
    assert message_of(recipe=recipe).startswith(f"{recipe}:4: train.tokens 1000 and train.epochs 3.0 both give")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: {a: 1\ntrain: x: 3\n", ":2: this is not YAML"),
        (b"model:\n\tsize: demo\n", ":2: this is not YAML"),
        (b"train:\n  steps: 3\n  steps: 4\n", ":3: this is not YAML: found duplicate key steps"),
        (b"- 1\n", " holds no sections"),
        (b"hello\n", " holds no sections"),
        (b"# nothing\n", " is empty"),
        (b"\xff\xfe\x00", " cannot be read"),
    ],
)
def test_a_broken_file_is_named(recipe: Path, content: bytes, expected: str) -> None:
    recipe.write_bytes(content)
    message = message_of(recipe=recipe)
    assert message.startswith(f"{recipe}{expected}")
    assert "\n" not in message


def test_a_missing_recipe_suggests_a_shipped_one(tmp_path: Path) -> None:
    assert message_of(recipe="configs/train/dmeo.yaml").endswith(f"does not exist; did you mean {DEMO}?")
    assert DEMO in message_of(recipe="qqqq")
    assert "is a folder, not a recipe" in message_of(recipe=tmp_path)


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = 1


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: Literal["a", "b"] = "a"
    inner: _Inner | None = None


def test_keys_inside_an_optional_section_are_known() -> None:
    assert list(all_keys(_Outer)) == ["word", "inner", "inner.depth"]
    with pytest.raises(ConfigError, match=r"unknown key inner\.dept; did you mean inner\.depth"):
        load_config(_Outer, None, ["inner.dept=3"])


def test_options_override_the_file_and_overrides_override_options(recipe: Path) -> None:
    recipe.write_text("input: [a]\noutput: out\nseed: 1\nworkers: 1\nvocab_size: 500\n")
    config = load_config(PrepareConfig, recipe, ["workers=3"], {"seed": 2, "workers": 2, "output": Path("there"), "val": None})
    assert (config.seed, config.workers, config.vocab_size, config.output) == (2, 3, 500, Path("there"))


def test_a_wrong_or_missing_option_is_named_as_an_option() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PrepareConfig, None, [], {"input": None, "output": Path("x"), "workers": 0})
    assert "the command line: input is missing; give --input, or input=VALUE" in str(caught.value)
    assert "--workers: workers is 0; expected a number greater than 0" in str(caught.value)


def test_workers_read_the_written_config(tmp_path: Path) -> None:
    config = load_run_config(DEMO, ["train.steps=5"])
    write_resolved(config, tmp_path / "runs" / "a")
    assert RunConfig.load(tmp_path / "runs" / "a") == config
    from_yaml = RunConfig.model_validate(yaml.safe_load((tmp_path / "runs/a/config.yaml").read_text()))
    assert from_yaml == config
    # A shipped recipe, once resolved, is itself a recipe.
    assert load_run_config(tmp_path / "runs/a/config.yaml") == config


def test_writing_the_same_config_again_does_not_touch_files(tmp_path: Path) -> None:
    config = load_run_config(DEMO)
    write_resolved(config, tmp_path)
    before = (tmp_path / "config.json").stat().st_ino
    write_resolved(config, tmp_path)
    assert (tmp_path / "config.json").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "config.yaml"]


def test_a_run_folder_accepts_only_its_own_run(tmp_path: Path) -> None:
    config = load_run_config(DEMO, ["optimizer.learning_rate=0.003"])
    assert check_same_run(config, tmp_path) is False
    write_resolved(config, tmp_path)
    intervals = ["train.steps=999", "train.validate_every=7", "train.checkpoint_every=7", "train.log_every=7"]
    longer = load_run_config(DEMO, ["optimizer.learning_rate=0.003", *intervals])
    assert check_same_run(longer, tmp_path) is True
    other = load_run_config(DEMO, ["optimizer.learning_rate=0.5", "train.seed=3", "train.steps=1"])
    with pytest.raises(ConfigError) as caught:
        check_same_run(other, tmp_path)
    message = str(caught.value)
    assert "train.seed (0 there, 3 now)" in message
    assert "optimizer.learning_rate (0.003 there, 0.5 now)" in message
    assert "train.steps" not in message
    assert "another --output" in message


def test_no_key_that_changes_numbers_may_differ_at_a_resume() -> None:
    assert set(all_keys(RunConfig)) >= _MAY_CHANGE  # no misspelt key
    decisive = {"train.seed", "train.precision", "train.global_batch_size", "train.initial_weights", "train.initial_moments"}
    decisive |= {"data.objective", "data.encoder_length", "data.decoder_length", "data.layout", "data.blend"}
    assert not decisive & _MAY_CHANGE
    assert not {key for key in _MAY_CHANGE if key.startswith(("model.", "optimizer."))}


def test_a_run_folder_of_another_version_is_compared_by_key(tmp_path: Path) -> None:
    config = load_run_config(DEMO)
    values = config.model_dump(mode="json")
    values["model"]["old_key"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"model\.old_key \(3 there, absent now\)"):
        check_same_run(config, tmp_path)
    del values["model"]["old_key"], values["data"]["layout"], values["data"]["blend"]  # as in versions without these keys
    values["data"]["objective"] = "prefix_lm"
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert check_same_run(config, tmp_path) is True
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ConfigError, match="not the configuration of a run"):
        check_same_run(config, tmp_path)
