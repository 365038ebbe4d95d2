import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ulskip_cli.core.config import StoredConfig, changed_choice, compose, group_choices, preset
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import Choice, Options, choices_of, option
from ulskip_cli.strategies.static import Unified

UNUSED = [
    (["strategy=custom", "strategy.layers=[0,5]"], "ratio=3"),
    (["strategy=full"], "ratio=3"),
    (["strategy=full"], "prompt_layers=kept"),
    (["strategy=full", "prompt_layers=first:3"], "correction=patch"),
    (["strategy=full"], "correction=patch"),
    ([], "calibration.examples=9"),
    (["strategy=skip_decode", "strategy.horizon=7"], "calibration.examples=9"),
    ([], "decoding.draft=ngram"),
    ([], "name=other"),
    ([], "baseline_engine=auto"),
]
USED = [
    *[([], "ratio=3"), ([], "seed=2"), ([], "limit=5"), ([], "offset=1")],
    (["strategy=full"], "prompt_layers=first:3"),
    *[([], "batch_size=4"), ([], "prompt_layers=kept"), ([], "baseline=false")],
    *[([], "task.pair=en-de"), ([], "task.subset=x"), ([], "decoding=beam")],
    *[([], "max_new_tokens=9"), ([], "engine=torch"), ([], "baseline_engine=torch")],
    *[([], "strategy=top_skip"), ([], "strategy.spacing=reference")],
    *[([], "correction=patch"), (["correction=patch"], "correction.kind=folded")],
    (["correction=patch"], "calibration.examples=9"),
    (["strategy=block_influence"], "calibration.examples=9"),
    (["strategy=skip_decode"], "calibration.examples=9"),
    (["decoding=self_speculative"], "decoding.draft=ngram"),
    (["engine=llama_cpp"], "engine.weights=q8_0"),
    (["strategy=custom", "strategy.layers=[0,5]"], "strategy.layers=[0,4]"),
]


@pytest.mark.parametrize(("overrides", "change"), UNUSED, ids=str)
def test_values_that_change_no_result_change_no_identity(overrides, change):
    changed, key = compose([*overrides, change]), change.partition("=")[0]
    assert changed.identity() == compose(overrides).identity()
    assert not changed.changes_results(key, "run")


@pytest.mark.parametrize(("overrides", "change"), USED, ids=str)
def test_values_that_change_results_change_the_identity(overrides, change):
    changed, key = compose([*overrides, change]), change.partition("=")[0]
    assert changed.identity() != compose(overrides).identity()
    assert changed.uses(key, "run") and changed.changes_results(key, "run")


class UnifiedWithMore(Unified):
    gain: float = option(1.0, "an option of a later version")


# Classes of ulskip are not named in identities.
UnifiedWithMore.__module__ = Unified.__module__
UnifiedWithMore.__qualname__ = Unified.__qualname__


def test_a_new_option_with_a_default_changes_no_identity():
    config = compose(["strategy=unified"])
    later = config.replace(strategy=UnifiedWithMore(name="unified"))
    assert later.identity() == config.identity()
    changed = config.replace(strategy=UnifiedWithMore(name="unified", gain=2))
    assert changed.identity() != later.identity()


BASES = ["", "strategy=full", "strategy=custom strategy.layers=[0,5]", "strategy=block_influence"]
BASES += ["correction=patch", "decoding=self_speculative", "baseline_engine=torch"]
CONFIGS = [compose(words.split()) for words in (*BASES, "speed.enabled=false")]
COMMANDS = ("run", "sweep", "bench", "plan", "export", "lm-eval", "tune")
POOLS = {
    "tuple": st.lists(st.sampled_from(["x", 1, 2]), max_size=2),
    "dict": st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2),
    "bool": st.booleans(),
    "int": st.integers(0, 9),
    "float": st.floats(0.5, 4),
    "str": st.sampled_from(["auto", "torch", "x"]),
}


def values_of(field):
    """Draw values of a field; those that its bounds refuse are left out later."""
    hint = str(field.annotation)
    pool = st.one_of(values for name, values in POOLS.items() if name in hint)
    return st.sampled_from(choices_of(field.annotation) or ("x",)) | pool


def keys_of(config):
    """The keys of a configuration."""
    for name, value in config:
        inner = type(value).model_fields if isinstance(value, Options) else ()
        yield from (f"{name}.{key}" for key in inner)
        if not inner:
            yield name


@st.composite
def changes(draw):
    """Draw a configuration, one of its keys, and the configuration with another value of it."""
    config = draw(st.sampled_from(CONFIGS))
    key = draw(st.sampled_from(list(keys_of(config))))
    section, _, name = key.rpartition(".")
    owner = getattr(config, section) if section else config
    try:
        if isinstance(owner, Choice) and name == "name":
            changed = preset(section, draw(st.sampled_from(sorted(group_choices(section)))))
        else:
            value = draw(values_of(type(owner).model_fields[name]))
            changed = changed_choice(owner, {name: value}, "")
    except UsageError:
        assume(False)
    assume(getattr(changed, name) != getattr(owner, name))
    return config, key, config.replace(**{section: changed}) if section else changed


@given(change=changes(), command=st.sampled_from(COMMANDS))
def test_the_values_that_change_results_and_no_others_are_part_of_the_identity(change, command):
    config, key, changed = change
    matters = any(each.changes_results(key, command) for each in (config, changed))
    assert (changed.identity(command) != config.identity(command)) is matters, key
    is_recorded = changed.recorded(command) != config.recorded(command)
    assert is_recorded or not matters
    assert any(each.uses(key, command) for each in (config, changed)) or not is_recorded


@given(change=changes(), command=st.sampled_from(["run", "bench", "lm-eval"]))
def test_a_row_stores_all_that_identifies_its_run(change, command):
    _, key, config = change
    stored = StoredConfig.of(config, command)
    assert stored.identity(command) == config.identity(command), key
    assert stored.non_defaults() == config.recorded(command)
    assert StoredConfig.read(stored.non_defaults()) == stored


@pytest.mark.parametrize("task", ["cnn_dm", "jsonl"])
def test_a_benchmark_has_one_identity_for_all_tasks(task):
    other, wmt = compose([f"task={task}", "model=tiny"]), compose([])
    # the length of an answer follows from the task, which a benchmark does not read
    assert other.identity("bench") == wmt.identity("bench")
    assert other.recorded("bench") == wmt.recorded("bench")
    assert other.identity() != wmt.identity()
    config = compose(["speed.new_tokens=9"], command="bench")
    assert config.max_new_tokens == 9  # it may decide the layers of a user's strategy


class Tomorrow(Config):
    """The configuration of a later version."""

    gain: float = option(1.0, "a key of a later version", read_by="run")
    folder: str = option("a", "a key that changes no result", read_by="run", changes_results=False)


def test_a_new_key_changes_the_identity_of_configurations_that_set_it_and_no_other():
    config = compose([])
    later = Tomorrow.model_validate(dict(config))
    assert later.identity() == config.identity()
    assert later.replace(folder="b").identity() == config.identity()
    changed = later.replace(gain=2.0)
    assert changed.identity() != config.identity()
    assert changed.identity("bench") == config.identity("bench")
