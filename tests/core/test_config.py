import pytest

from ulskip_cli.core import config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies.unified import Unified
from ulskip_cli.tasks import metrics


def test_the_default_composes():
    chosen = config.compose([])
    assert (chosen.model.name, chosen.task["name"], chosen.strategy["name"], chosen.ratio) == ("tiny", "wmt", "unified", 2.0)


@pytest.mark.parametrize("path", sorted(config.config_dir().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_composes_and_instantiates(path):
    group = path.parent.name
    needed = ["model.path=anything"] if path.stem == "hf" else []
    composed = config.compose_training if group == "train" or path.stem == "train" else config.compose
    chosen = composed([f"{group}={path.stem}", *needed] if group in (*config.GROUPS, "train") else [])
    config.instantiate(chosen.strategy, "strategy")
    task = config.instantiate(chosen.task, "task")
    for has_chat in (True, False):
        assert "{source}" in task.template_for(has_chat).prompt_format
    metrics.make_metrics(task.scoring())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=unifed"], "unknown strategy 'unifed'; did you mean 'unified'?"),
        (["task=wnt"], "unknown task 'wnt'; did you mean 'wmt'?"),
        (["ratoi=2"], "unknown key 'ratoi'; did you mean 'ratio'?"),
        (["strategy.spacng=even"], "unknown key 'strategy.spacng'; did you mean 'strategy.spacing'?"),
        (["modle=tiny"], "unknown key 'modle'; did you mean 'model'?"),
        (["ratio=abc"], "ratio: Value 'abc'"),
        (["ratio"], "'ratio'; expected key=value"),
        (["ratio=2,3"], "ulskip sweep ratio=2,3"),
        (["ratio_basis=layer"], "unknown ratio_basis 'layer'; did you mean 'layers'?"),
        (["prompt_layers=keep"], "unknown prompt_layers 'keep'"),
        (["model.dtype=float31"], "did you mean 'float32'?"),
        (["model=hf"], "expected a value for model.path"),
        (["batch_size=0"], "expected batch_size >= 1, got 0"),
        (["limit=0"], "expected limit >= 1, got 0"),
        (["name=a/b"], "name"),
        (["name=.."], "name"),
        (["+surprise=1"], "surprise"),
        (["decoding.stop=x"], "decoding.stop: expected a list, written [a,b]"),
        (["decoding.generate_kwargs=[1]"], "expected keys with values, written {a: 1, b: 2}"),
        (["decoding.temperature=0"], "expected decoding.temperature > 0, got 0"),
        (["decoding.temperature=0.7"], "decoding.do_sample=true"),
        (["decoding=sample", "decoding.top_p=1.5"], "expected decoding.top_p <= 1, got 1.5"),
        (["decoding.stop=['']"], "decoding.stop"),
        (["decoding.draft_tokens=-1"], "got -1"),
        (["decoding.draft_tokens=some"], "got some"),
        (["decoding=beam", "decoding.draft_tokens=2"], "set decoding.num_beams=1"),
        (["decoding=self_speculative", "decoding.stop=[x]"], "set decoding.stop=[]"),
        (["decoding=self_speculative", "decoding.generate_kwargs={min_p: 0.1}"], "set decoding.generate_kwargs=null"),
        (["decoding=self_speculative", "decoding.engine=fast"], "set decoding.engine=auto"),
        (["decoding=self_speculative", "decoding.compile=on"], "set decoding.compile=auto"),
        (["decoding=self-speculative", "prompt_layers=kept"], "set prompt_layers=all"),
        (["model.quantization=int7"], "unknown model.quantization 'int7'"),
        (["model=random", "model.quantization=bnb-nf4"], "model.quantization"),
        (["model=random", "model.device_map=auto"], "model.device_map"),
        (["model=random", "model.adapter=x"], "model.adapter"),
        (["strategy=null"], "unknown strategy 'None'"),
    ],
)
def test_bad_input_is_one_line_that_helps(overrides, message):
    with pytest.raises(UsageError) as caught:
        config.compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_of_a_strategy_are_checked_by_its_class():
    chosen = config.compose(["strategy=custom", "strategy.layers=[0,x]"])
    with pytest.raises(UsageError, match=r"strategy\.layers"):
        config.instantiate(chosen.strategy, "strategy")
    assert config.instantiate(config.compose(["strategy.spacing=reference"]).strategy, "strategy") == Unified("reference")


def test_a_class_that_does_not_exist_is_named():
    with pytest.raises(UsageError, match=r"cannot load 'no\.such\.Thing'"):
        config.instantiate({"_target_": "no.such.Thing", "name": "x"}, "strategy")


@pytest.mark.parametrize("override", ["name=other", "results_dir=elsewhere", "tracker_options={project: mine}"])
def test_identity_ignores_what_changes_no_result(override):
    assert config.identity(config.compose([override])) == config.identity(config.compose([]))


def test_drafts_are_compared_with_the_same_choice_of_tokens_one_at_a_time():
    drafted = config.baseline_config(config.compose(["decoding=self_speculative", "ratio=3"]))
    assert config.identity(drafted) == config.identity(config.compose(["strategy=full"]))
    sampled = config.baseline_config(config.compose(["decoding=sample", "decoding.draft_tokens=auto"]))
    assert config.identity(sampled) == config.identity(config.compose(["strategy=full", "decoding=sample"]))


@pytest.mark.parametrize(
    "override",
    [
        "ratio=3",
        "seed=2",
        "task.source_language=Deutsch",
        "limit=5",
        "task.pair=en-de",
        "decoding=beam",
        "prompt_layers=kept",
        "baseline=false",
    ],
)
def test_identity_follows_what_changes_results(override):
    assert config.identity(config.compose([override])) != config.identity(config.compose([]))


def test_all_ratios_share_one_baseline():
    baselines = {
        config.identity(config.baseline_config(config.compose(o))) for o in (["ratio=2"], ["ratio=3", "prompt_layers=kept"])
    }
    assert baselines == {config.identity(config.compose(["strategy=full", "ratio=5"]))}


def test_the_resolved_yaml_composes_to_the_same(tmp_path):
    from omegaconf import OmegaConf

    chosen = config.compose(["ratio=3"])
    assert OmegaConf.to_container(OmegaConf.create(config.to_yaml(chosen))) == config.resolved_config(chosen)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.ratio=2"], r"train.ratio.*did you mean 'train.ratios'"),
        (["train=papr"], "did you mean 'paper'"),
        (["train.optimizer=adam"], "adamw, muon"),
        (["train.ce_weight=0"], "got 0 for all"),
        (["seed=-1"], "seed >= 0"),
        (["train.dropout=1"], "train.dropout < 1"),
        (["train.learning_rate=0"], "train.learning_rate > 0"),
        (["train.ratios=[1,2]", "train.ratio_weights=[1]"], "for each of 2 ratios"),
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
    assert config.compose_training(["train.ratios=3"]).train.ratios == [3.0]


def test_a_path_alone_is_a_model_of_ones_own():
    assert config.compose(["model.path=some/folder"]).model.source == "hf"
    assert config.compose(["model=random", "model.path=bloom-7b1"]).model.source == "random"


def test_every_training_preset_composes():
    names = sorted(path.stem for path in (config.config_dir() / "train").glob("*.yaml"))
    assert {"default", "lora", "paper", "scratch"} <= set(names)
    assert [config.compose_training([f"train={name}"]).train.name for name in names] == names
