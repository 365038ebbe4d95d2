import re

import hydra
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core import config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import metrics


@pytest.mark.parametrize(
    "path", sorted(config.config_dir().rglob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_composes(path, monkeypatch):
    monkeypatch.setenv("ULSKIP_VLLM_PYTHON", "python")  # the package of the engine need not be here
    group = path.parent.name
    paths = {"hf": ["model.path=x"], "adapter": ["model.path=x", "correction.path=y"]}
    paths |= {"humaneval": ["task.allow_code=true"]}
    needed = paths.get(path.stem, [])[: 1 if group == "train" else 2]
    is_training = "train" in (group, path.stem)
    is_choice = group in (*config.GROUPS, "train")
    overrides = [f"{group}={path.stem}", *needed] if is_choice else []
    if is_training:
        chosen = config.compose_training(overrides)
    else:
        chosen = config.compose(overrides, command="sweep")
    for has_chat in (True, False):
        assert "{source}" in chosen.task.template_for(has_chat).prompt_format
    metrics.make_metrics(chosen.task.scoring())


ALONE = [  # command lines of README and docs
    ("config", ["task=wmt", "++ratio=2.0"]),
    ("config", ["engine=llama_cpp_q8_0", "++ratio=1.5", "++baseline_engine=torch"]),
    ("config", ["model=smollm2-135m", "task=cnn_dm", "strategy=one_block", "correction=patch"]),
    ("config", ["decoding=prompt_lookup", "++batch_size=1"]),
    ("config", ["decoding=self_speculative", "++ratio=3", "++batch_size=1"]),
    ("config", ["task=jsonl", "++task.file=mine.jsonl", "model=tiny"]),
    ("config", ["experiment=engines"]),
    ("config", ["experiment=paper", "++task.dataset=sample"]),
    ("train", ["train=adapter", "task=cnn_dm", "model=smollm2-135m", "++train.ratios=[1.5]"]),
    ("tune", ["task=cnn_dm", "++task.file=articles.jsonl", "++quality=0.95"]),
]


@pytest.mark.parametrize(("primary", "words"), ALONE, ids=str)
def test_hydra_alone_composes_the_same_choices_and_values(primary, words):
    with hydra.initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        alone = hydra.compose(primary, words)
    command = "sweep" if primary == "config" else primary
    composed = {
        "sweep": lambda words: config.compose(words, "sweep"),
        "tune": config.compose_tuning,
        "train": config.compose_training,
    }[command](words).plain()
    groups = {*config.PRIMARY[primary][1]} & alone.keys()
    for group in groups:
        values = {key: value for key, value in alone[group].items() if key in composed[group]}
        assert values["name"] == composed[group]["name"]
        assert values == {key: composed[group][key] for key in values}


GRAMMAR = "++prompt_layers=kept ~model.dtype +model.chat_options={seen:'${prompt_layers}'}"


@pytest.mark.parametrize("command", ["run", "sweep", "train", "tune", "plan", "bench"])
def test_commands_know_the_grammar_of_hydra(ulskip, tmp_path, command):
    (tmp_path / "model").mkdir()
    for name, text in {"base": "", "mine": "defaults: [tiny, base, _self_]\n"}.items():
        (tmp_path / "model" / f"{name}.yaml").write_text(f"{text}name: {name}\ndtype: float16\n")
    words = [f"hydra.searchpath=[{tmp_path}]", "model=mine", *GRAMMAR.split()]
    code, out, err = ulskip(command, *words, "--print-config")
    assert code == 0, err
    model = yaml.safe_load(out)["model"]
    assert (model["name"], model["path"], model["dtype"]) == ("mine", "tiny", "auto")
    assert model["chat_options"] == {"seen": "kept"}


def test_drafts_are_compared_with_the_same_choice_of_tokens_one_at_a_time():
    drafted = config.baseline_config(config.compose(["decoding=self_speculative", "ratio=3"]))
    looked_up = config.baseline_config(config.compose(["decoding=prompt_lookup"]))
    plain = config.compose(["strategy=full"])
    assert looked_up.identity() == drafted.identity() == plain.identity()


def test_the_stored_yaml_says_everything_that_decides_the_result():
    chosen = config.compose(["ratio=3"])
    stored = yaml.safe_load(config.to_yaml(chosen))
    assert stored["ratio"] == 3 and stored["strategy"]["spacing"] == "even"
    assert set(chosen.recorded()) <= set(stored)
    assert "launcher" not in stored


@given(st.text(alphabet="\\${}a:'\" ", max_size=12) | st.just("${oc.env:HOME}"))
def test_a_text_of_a_stored_row_is_literal(text):
    assert config.preset("task", "jsonl", {"prompt": text}).prompt == text


ESCAPED = r'task.prompt="{source}\nTranslate German to English:"'


@pytest.mark.parametrize("more", [[], ["+model.chat_options={group: 2.0}"]])
def test_escapes_are_those_of_texts_for_the_model_alone(more):
    overrides = [ESCAPED, r"task.response='{reference}\t\\n'", r"task.dataset='C:\new'", *more]
    task = config.compose(overrides).task
    assert task.prompt == "{source}\nTranslate German to English:"
    assert (task.response, task.dataset) == ("{reference}\t\\n", r"C:\new")
    template = r"+task.templates.mine={prompt: '{source}\n', response: '{reference}'}"
    added = config.compose([template])
    assert added.task.templates["mine"] == {"prompt": "{source}\n", "response": "{reference}"}


HEAD = b"_target_: ulskip_cli.strategies.static.KeepAll\nname: mine\n"
BROKEN = {
    "binary": (HEAD + b"description: \xff\xfe\x00", "FILE"),
    "malformed": (HEAD + b"layers: [", "FILE, line 3"),
    "duplicate key": (HEAD + b"options: {a: 1, a: 2}", "FILE, line 3"),
    "empty": (b"", "FILE"),
    "whole number as key": (HEAD + b"5: 5", "FILE"),
    "python object": (HEAD + b"x: !!python/object/apply:os.getcwd []", "FILE, line 3"),
    "no name": (b"_target_: x\n", "FILE"),
    "itself as defaults": (b"defaults: [mine]\n" + HEAD, "FILE"),
    "number as defaults": (b"defaults: [5]\n" + HEAD, "FILE .* type in defaults : int"),
    "mapping as defaults": (b"defaults: {hf: 1}\n" + HEAD, "FILE .*must be a list"),
    "no base": (
        b"defaults: [fulll]\n" + HEAD,
        "strategy in the defaults of FILE 'fulll'; did .*'full'",
    ),
    "no group": (
        b"defaults: [{override /modl: hf}]\n" + HEAD,
        "FILE .*'modl@strategy.modl'.*write",
    ),
    "no module": (b"_target_: planted.Thing\nname: mine\n", "strategy=mine: .*planted.Thing"),
    "another class": (HEAD.replace(b"KeepAll", b"Layers"), "strategy=mine: .*Layers"),
    "no class": (b"_target_: '3'\nname: mine\n", "strategy=mine: .*3"),
}


@pytest.mark.parametrize(("content", "named"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_of_the_config_folder_is_named(content, named, tmp_path):
    file = tmp_path / "strategy" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    config.use_config_dir(tmp_path)
    with pytest.raises(UsageError, match=named.replace("FILE", re.escape(str(file)))):
        config.compose(["strategy=mine"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("null", None),
        ("", ""),
        ("on", "on"),
        ("[0,[a,b]]", [0, ["a", "b"]]),
        ("{a:1,b: 'x,y'}", {"a": 1, "b": "x,y"}),
        ('"2,3"', "2,3"),
    ],
)
def test_the_value_of_an_override(text, value):
    (override,) = config.parse_overrides([f"key={text}"])
    assert override.value() == value and not override.is_sweep_override()


def test_the_length_of_an_answer_is_the_tasks_unless_one_is_set():
    paper = ["experiment=paper", "task.dataset=sample"]
    lengths = [
        config.compose(words).answer_tokens
        for words in ([], ["task=cnn_dm"], paper, ["task=humaneval", "max_new_tokens=9"])
    ]
    assert lengths == [64, 128, 256, 9]


def test_an_experiment_without_the_package_of_its_keys_is_told_to_add_it(tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("ratio: 3\n")
    config.use_config_dir(tmp_path)
    with pytest.raises(UsageError, match=f"`# @package _global_` as the first line of {file}"):
        config.compose(["experiment=mine"])


def test_an_experiment_is_merged_over_groups_and_below_overrides(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [{override /task: jsonl}, {override /model: hf},"
    text += " {override /decoding: beam}, _self_]\nmodel: {path: x}\nratio: 3\nlimit: 5\n"
    text += "calibration: {task: {share: 1e-1}}\nmax_new_tokens: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config.use_config_dir(tmp_path)
    chosen = config.compose(["experiment=mine", "limit=6"])
    assert (chosen.task.name, chosen.model.path, chosen.ratio, chosen.limit) == ("jsonl", "x", 3, 6)
    assert chosen.calibration.task == {"share": 0.1}
    assert (chosen.decoding.num_beams, chosen.max_new_tokens) == (4, 7)
    assert config.compose(["experiment=mine", "model=tiny"]).model.name == "tiny"
    paper = ["experiment=paper", "task.dataset=sample"]
    for chosen, beams in (([], 4), (["decoding=greedy"], 1), (["decoding=sample"], 1)):
        assert config.compose([*paper, *chosen]).decoding.num_beams == beams


@pytest.mark.parametrize("command", [["plan"], ["config", "strategy=unified"], ["config"]])
def test_a_file_of_the_user_with_the_name_of_a_shipped_one_is_refused(ulskip, tmp_path, command):
    file = tmp_path / "strategy" / "unified.yaml"
    file.parent.mkdir()
    file.write_text("_target_: ulskip_cli.strategies.static.TopSkip\nname: unified\n")
    code, _, err = ulskip(*command, "--config-dir", tmp_path)
    assert code == 2 and f"{file}: strategy=unified is already defined by" in err
    file.rename(file.with_name("mine.yaml"))
    assert ulskip(*command, "--config-dir", tmp_path)[0] == 0


UNKNOWN = [
    {"of_tomorrow": 4},
    {"of_tomorrow": {"deep": [1]}},
    {"speed": {"of_tomorrow": 4}},
    {"speed": {"pairs": 3, "of_tomorrow": None}},
    {"strategy": {"name": "unified", "gain": 2.0}},
    {"strategy": {"name": "mine", "_target_": "mine.Loudest", "side": "left"}},
    {"correction": {"name": "mine", "kind": "full"}},
    {"engine": {"name": "mine", "threads": 4}},
    {"engine": {"name": "mine", "weights": "q3"}},
    {"task": {"name": "mine", "file": "x"}},
]


@pytest.mark.parametrize("values", UNKNOWN, ids=str)
@pytest.mark.parametrize("command", ["run", "bench"])
def test_values_of_a_row_that_are_not_known_are_kept_and_identify_it(values, command):
    row = {**config.compose([]).recorded(), **values}
    stored = config.StoredConfig.read(row)
    assert stored.non_defaults() == row
    assert config.StoredConfig.read(stored.non_defaults()) == stored
    is_read = command == "run" or "task" not in values  # a benchmark reads no task
    if is_read:
        assert stored.identity(command) != config.compose([]).identity(command)
    (section, inner), *_ = values.items()
    last = {**inner, [*inner][-1]: 5} if isinstance(inner, dict) else 5
    other = config.StoredConfig.read({**row, section: last})
    assert (other.identity(command) != stored.identity(command)) is is_read


def test_decoding_options_of_python_callers_are_checked():
    assert config.decoding_of({"stop": "x"}).stop == ("x",)
    for values, named in (({"draft_tokens": 2}, "draft_tokens"), ({"top_k": 3}, "do_sample")):
        with pytest.raises(UsageError, match=named):
            config.decoding_of(values)


def test_any_device_of_torch_is_accepted():
    assert config.compose(["model.device=xpu:1"]).model.device == "xpu:1"
