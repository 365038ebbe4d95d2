import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core import config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies.static import Unified
from ulskip_cli.tasks import metrics


def test_the_default_composes():
    chosen = config.compose([])
    assert (chosen.model.name, chosen.task.name, chosen.strategy.name, chosen.ratio) == (
        "tiny",
        "wmt",
        "unified",
        2.0,
    )


@pytest.mark.parametrize(
    "path", sorted(config.config_dir().rglob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_composes(path, monkeypatch):
    monkeypatch.setenv("ULSKIP_VLLM_PYTHON", "python")  # the package of the engine need not be here
    group = path.parent.name
    needed = {"hf": ["model.path=x"], "adapter": ["model.path=x", "correction.path=y"]}.get(
        path.stem, []
    )
    needed = needed[:1] if group == "train" else needed
    composed = (
        config.compose_training if group == "train" or path.stem == "train" else config.compose
    )
    chosen = composed(
        [f"{group}={path.stem}", *needed] if group in (*config.GROUPS, "train") else []
    )
    for has_chat in (True, False):
        assert "{source}" in chosen.task.template_for(has_chat).prompt_format
    metrics.make_metrics(chosen.task.scoring())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=unifed"], "unifed.*unified"),
        (["task=wnt"], "wnt.*wmt"),
        (["ratoi=2"], "ratoi.*ratio"),
        (["strategy.spacng=even"], r"strategy\.spacng.*strategy\.spacing.*ulskip config strategy"),
        (["modle=tiny"], "modle.*model"),
        (["ratio=abc"], "ratio .*number.*abc"),
        (["ratio"], "key=value.*'ratio'"),
        (["wmt"], "task=wmt"),
        (["--ratio=2"], "ratio=2"),
        (["model=gpt2"], r"model\.path="),
        (["ratio=2,3"], "ulskip sweep ratio=2,3"),
        (["ratio_basis=layer"], "ratio_basis.*'layer'.*layers"),
        (["prompt_layers=keep"], "prompt_layers.*'keep'"),
        (["model.dtype=float31"], "float31.*float32"),
        (["model=hf"], r"model\.path"),
        (["batch_size=0"], "batch_size >= 1.*0"),
        (["limit=0"], "limit >= 1.*0"),
        (["name=a/b"], "name"),
        (["name=.."], "name"),
        (["+surprise=1"], "surprise"),
        (["+decoding.surprise=1"], r"decoding\.surprise"),
        (["speed=3"], "speed .*3"),
        (["ratio=${nothing}"], "nothing"),
        (["model.revision=${nothing}"], "nothing"),
        (["decoding.stop=[[x]]"], r"decoding\.stop .*list of texts, written \[a,b\]"),
        (["decoding.generate_kwargs=[1]"], r"decoding\.generate_kwargs .*\{a: 1, b: 2\}.*\[1\]"),
        (["decoding.temperature=0"], r"decoding\.temperature > 0.*0"),
        (["decoding.temperature=0.7"], r"decoding\.temperature.*decoding\.do_sample=true"),
        (["decoding=sample", "decoding.top_p=1.5"], r"decoding\.top_p <= 1.*1\.5"),
        (["decoding.stop=['']"], r"decoding\.stop"),
        (["decoding.draft_tokens=-1"], r"decoding\.draft_tokens.*-1"),
        (["decoding.draft_tokens=some"], r"decoding\.draft_tokens.*some"),
        (["decoding=self_speculative", "decoding.draft_vocab=-1"], r"decoding\.draft_vocab.*-1"),
        (["decoding=beam", "decoding.draft_tokens=2"], r"decoding\.num_beams=1"),
        (["decoding=self_speculative", "decoding.stop=[x]"], r"decoding\.stop=\[\]"),
        (
            ["decoding=self_speculative", "decoding.generate_kwargs={min_p: 0.1}"],
            r"decoding\.generate_kwargs=null",
        ),
        (["decoding=self_speculative", "engine=transformers"], "engine=torch"),
        (["decoding=self_speculative", "decoding.compile=on"], r"decoding\.compile=auto"),
        (["decoding=self-speculative", "prompt_layers=kept"], "prompt_layers=all"),
        (["model.quantization=int7"], r"model\.quantization.*'int7'"),
        (["model=random", "model.quantization=bnb-nf4"], r"model\.quantization"),
        (["model=random", "model.device_map=auto"], r"model\.device_map"),
        (["model=random", "model.adapter=x"], r"model\.adapter"),
        (["strategy=null"], "strategy 'None'"),
        (["strategy=custom", "strategy.layers=[0,x]"], r"strategy\.layers"),
    ],
)
def test_bad_input_is_one_line_that_helps(overrides, message):
    with pytest.raises(UsageError) as caught:
        config.compose(overrides)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_preset_is_an_object_of_its_class():
    assert config.compose(["strategy.spacing=reference"]).strategy == config.preset(
        "strategy", "unified", {"spacing": "reference"}
    )
    assert isinstance(config.compose([]).strategy, Unified)


@pytest.mark.parametrize(
    "target", ["planted.Thing", "ulskip_cli.core.config_schema.SpeedConfig", "", "3"]
)
def test_a_class_that_is_no_strategy_is_named(target, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "x.yaml").write_text(f"_target_: '{target}'\nname: x\n")
    with pytest.raises(UsageError, match=f"strategy=x: .*{re.escape(target)}"):
        config.compose(["strategy=x"], tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        *("strategy._target_=a.B", "+strategy._target_=a.B", "task._target_=a.B", "~task._target_"),
        *(
            "strategy.name=full",
            "decoding.name=beam",
            "+hydra.searchpath=[file:///tmp]",
            "hydra.verbose=true",
        ),
    ],
)
def test_keys_that_only_a_file_sets_are_no_overrides(override):
    with pytest.raises(UsageError, match=r"_target_|\.name|hydra"):
        config.compose([override])


def test_drafts_are_compared_with_the_same_choice_of_tokens_one_at_a_time():
    drafted = config.baseline_config(config.compose(["decoding=self_speculative", "ratio=3"]))
    looked_up = config.baseline_config(config.compose(["decoding=prompt_lookup", "strategy=full"]))
    assert looked_up.identity == drafted.identity == config.compose(["strategy=full"]).identity
    sampled = config.baseline_config(
        config.compose(["decoding=sample", "decoding.draft_tokens=auto"])
    )
    assert sampled.identity == config.compose(["strategy=full", "decoding=sample"]).identity


def test_all_ratios_share_one_baseline():
    chosen = [config.compose(["ratio=2"]), config.compose(["ratio=3", "prompt_layers=kept"])]
    baselines = {config.baseline_config(point).identity for point in chosen}
    assert baselines == {config.compose(["strategy=full", "ratio=5"]).identity}


def test_the_stored_yaml_says_everything_that_decides_the_result():
    chosen = config.compose(["ratio=3"])
    stored = yaml.safe_load(config.to_yaml(chosen))
    assert stored["ratio"] == 3 and stored["strategy"]["spacing"] == "even"
    assert set(chosen.recorded()) <= set(stored)
    assert not {"launcher", "tracker", "tracker_options"} & stored.keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.ratio=2"], r"train\.ratio'.*train\.ratios"),
        (["train=papr"], "papr.*paper"),
        (["train.optimizer=adam"], "adamw, muon"),
        (["train.ce_weight=0"], r"train\.ce_weight"),
        (["seed=-1"], "seed >= 0"),
        (["train.dropout=1"], "train.dropout < 1"),
        (["train.learning_rate=0"], "train.learning_rate > 0"),
        (["train.ratios=[1,2]", "train.ratio_weights=[1]"], r"2 train\.ratio_weights.*\[1"),
        (["train.validation={limit:3}", "train.held_out=3"], "got both"),
        (["train.reversed_share=2"], r"train\.reversed_share <= 1, got 2"),
        (["train.ratios=2,3"], "ulskip sweep"),
        (["train.ratios=many"], "ratios"),
        (["decoding=beam"], "unknown key 'decoding'"),
    ],
)
def test_bad_training_settings_are_one_line(overrides, message):
    with pytest.raises(UsageError, match=message):
        config.compose_training(overrides)


def test_one_ratio_may_be_written_without_a_list():
    assert config.compose_training(["train.ratios=3"]).train.ratios == (3.0,)


def test_a_path_alone_is_a_model_of_ones_own():
    assert config.compose(["model.path=some/folder"]).model.source == "hf"
    assert config.compose(["model=random", "model.path=bloom-7b1"]).model.source == "random"


def test_every_training_preset_composes():
    names = sorted(path.stem for path in (config.config_dir() / "train").glob("*.yaml"))
    assert {"default", "lora", "paper", "scratch"} <= set(names)
    assert [config.compose_training([f"train={name}"]).train.name for name in names] == names


@given(st.text(alphabet="\\${}a:'\" ", max_size=12) | st.just("${oc.env:HOME}"))
def test_a_text_of_a_stored_row_is_literal(text):
    assert config.preset("task", "jsonl", {"prompt": text}).prompt == text


def test_an_interpolation_in_a_stored_number_is_refused(monkeypatch):
    monkeypatch.setenv("SECRET", "9")
    with pytest.raises(UsageError, match=r"task\.max_new_tokens"):
        config.preset("task", "jsonl", {"max_new_tokens": "${oc.env:SECRET}"})


def test_an_unknown_option_of_a_stored_row_is_named():
    with pytest.raises(UsageError, match=r"strategy\.spacng.*strategy\.spacing"):
        config.preset("strategy", "unified", {"spacng": "even"})
