"""The device of device.py has the answers of the CPU, and a tensor in the wrong place fails."""

from pathlib import Path

import pytest
import torch
from device import NAME, register
from needs import RECIPES, SMALL
from reference import (
    ARCHITECTURES,
    batch,
    build_model,
    decoder_for,
    generate,
    random_adapter,
    save_adapter,
)
from safetensors.torch import load_file

from ulskip_cli import api
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.runner import Models
from ulskip_cli.export.export_run import ExportRequest, run_export
from ulskip_cli.inference.loading import load, pick_device
from ulskip_cli.training import trainer

# The first backward pass of a process counts the devices, so that none can be added after it.
MODULE = register()
pytestmark = pytest.mark.usefixtures("single_thread", "device")
ROOT, PLACES = Path(__file__).parent.parent, ("cpu", NAME)
KEPT, LAYERS = (0, 2, 5), ["strategy=custom", "strategy.layers=[0,2,5]"]


@pytest.fixture(scope="module")
def device():
    """The device, which is available during these tests alone."""
    MODULE.is_open = True
    # Like a GPU, it keeps tied parameters tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield torch.device(NAME)
    torch.__future__.set_swap_module_params_on_conversion(False)
    MODULE.is_open = False


MIXTURES = {
    "tensors": lambda here, cpu: here + cpu,
    "a list of tensors": lambda here, cpu: torch.cat([here, cpu]),
    "an index": lambda here, cpu: cpu[here > 1],
    "a generator": lambda here, cpu: here.multinomial(1, generator=torch.Generator()),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_of_devices_raises(mixture, device):
    numbers = torch.arange(6.0).view(2, 3)
    with pytest.raises(RuntimeError, match=r"device|CPU"):
        MIXTURES[mixture](numbers.to(device), numbers)


def test_it_is_an_accelerator_of_torch():
    assert pick_device("auto").type == NAME
    assert pick_device(NAME).type == NAME


LENGTH = 12
SCHEDULES = {
    "full": ["strategy=full"],
    "unified": ["ratio=2"],
    "kept prompt": ["ratio=2", "prompt_layers=kept"],
    "stages": ["ratio=2", "strategy=skip_decode", "strategy.horizon=6"],
    "early exit": ["strategy=early_exit", "strategy.threshold=0.3"],
}


def answered(name, place, *overrides, **options):
    """Return the greedy answers of a model to padded prompts, without the kernels of the CPU."""
    decoder = decoder_for(build_model(name).to(place), *overrides, **options)
    output = generate(decoder, *batch(True), LENGTH)
    assert place == "cpu" or output.linear_backend == "torch"
    return output.token_ids


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_the_answers_of_the_cpu(name):
    for overrides in SCHEDULES.values():
        expected, got = (answered(name, place, *overrides) for place in PLACES)
        assert got == expected, overrides


def test_prompts_on_the_wrong_device_fail(device):
    decoder = decoder_for(build_model("llama").to(device), "ratio=2")
    decoder.device = torch.device("cpu")
    with pytest.raises(RuntimeError, match="on the CPU in aten::"):
        generate(decoder, *batch(True), LENGTH)


@pytest.fixture(scope="module")
def adapter_folder(model_folder, tmp_path_factory):
    """A skip adapter of the saved model, with random LoRA."""
    config = compose([f"model.path={model_folder}", "model.device=cpu"]).model
    adapter, _ = random_adapter(load(config).model, KEPT, "lora")
    return save_adapter(adapter, config, tmp_path_factory.mktemp("device") / "adapter")


@pytest.fixture(scope="module")
def sessions():
    return {place: Models() for place in PLACES}


@pytest.fixture
def measured(sessions, model_folder, adapter_folder, tmp_path):
    """Return a function that runs a point on a device, and returns its row and its answers."""

    def run(place, *overrides):
        model = [f"model.path={model_folder}", "model.dtype=float32", f"model.device={place}"]
        words = [*SMALL, *FEW, "model=hf", *model, f"results_dir={tmp_path / place}", *overrides]
        words = [word.replace("{adapter}", str(adapter_folder)) for word in words]
        row = api.evaluate(*words, models=sessions[place])[-1]
        assert row.is_done, row
        return row, ResultsFolder(tmp_path / place).generations(row.id)

    return run


# Every need and every strategy.
FEW = ["limit=3", "max_new_tokens=6", "speed.enabled=false"]
STRATEGIES = {path.stem: [] for path in sorted((ROOT / "configs/strategy").glob("*.yaml"))}
STRATEGIES |= {
    "custom": ["strategy.layers=[0,2,5]"],
    "early_exit": ["strategy.threshold=0.05"],
    "one_block": ["strategy.budget=3"],
    "search": ["strategy.budget=6"],
    "skip_decode": ["strategy.horizon=3"],
}
# A copy that drafts needs the kernels, which a device does not have.
NOT_OF_RUNS = {Need.OTHER_ENGINE, Need.NO_TOKENIZER, Need.COPY_DRAFTS}
RUNS = {need.name: words for need, words in RECIPES.items() if need not in NOT_OF_RUNS}
RUNS |= {name: [f"strategy={name}", *words, "baseline=true"] for name, words in STRATEGIES.items()}
RUNS["ADAPTER"] = [*RUNS["ADAPTER"], *LAYERS]
RUNS["LOOK_UPS"] = [*RUNS["LOOK_UPS"], "max_new_tokens=32"]  # random models repeat themselves
RUNS["timed"] = ["baseline=true", "speed.enabled=true"]
RUNS["bfloat16"] = ["model.dtype=bfloat16"]
SAME = ["kept_layers", "later_stages", "exit_depths"]
NEAR = ["decode_loss", "agreement", "kl_divergence"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_answers_of_the_cpu(name, measured):
    (expected, texts), (got, answers) = (measured(place, *RUNS[name]) for place in PLACES)
    assert got.device == f"{NAME}:0"
    assert answers == texts
    assert got.agreement or "baseline=true" not in RUNS[name] or name in ("full", "OTHER_BASELINE")
    for key in SAME:
        assert getattr(got, key) == getattr(expected, key), key
    assert got.mean_draft_length or name not in ("LOOK_UPS",)
    rounding = 2e-3 if name == "bfloat16" else 1e-4
    for key in NEAR:
        number = getattr(expected, key)
        assert getattr(got, key) == (number and pytest.approx(number, rel=rounding)), key


@pytest.fixture
def trained(train, tmp_path, monkeypatch):
    """Return a function that trains two steps on a device: the record and the tensors."""

    def call(place, *overrides):
        # which Trainer knows of no other device
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", place)
        # Its allocator caches nothing, for which torch's function raises an error.
        monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
        words = [f"model.device={place}", "limit=8", "train.batch_size=4", "train.max_steps=2"]
        words += ["train.log_every=1", "train.held_out=2", "train.save_every=1"]
        record = train(tmp_path / place, *words, "train.learning_rate=1e-3", *overrides)
        (file,) = (tmp_path / place).glob("*.safetensors")
        return record, load_file(file)

    return call


OWN = ["train.responses=own", "max_new_tokens=4"]
ADAPTER = ["train=adapter", "train.lora.rank=2", "train.responses=reference"]
TRAININGS = {
    "full": ["train.ratios=[1,2]"],
    "full for stages": ["strategy=skip_decode", "train.distill_weight=1"],
    "full for early exit": ["strategy=early_exit"],
    "full on own answers": OWN,
    "lora": ["train=lora", "train.lora.rank=2", "train.gradient_accumulation_steps=1"],
    **{f"adapter with {kind}": [*ADAPTER, f"correction.kind={kind}"] for kind in KINDS},
    "adapter on own answers": [*ADAPTER, *OWN, "train.own.samples=2", "train.gap_weight=1"],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_has_the_losses_of_the_cpu(name, trained):
    (expected, tensors), (got, weights) = (trained(place, *TRAININGS[name]) for place in PLACES)
    assert got.environment["accelerator"] is None
    assert got.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
    for ours, theirs in zip(got.learning_curve, expected.learning_curve, strict=True):
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
    assert weights.keys() == tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=2e-3)


def test_a_training_is_resumed(trained, monkeypatch):
    expected, _ = trained("cpu", *ADAPTER)
    compute = trainer.SkipTrainer.compute_loss

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer.SkipTrainer, "compute_loss", interrupted)
        trained(NAME, *ADAPTER)
    got, _ = trained(NAME, *ADAPTER)
    assert got.resumed
    assert got.train_loss == pytest.approx(expected.train_loss, rel=1e-4)


def test_a_training_on_another_device_than_the_models_is_refused(trained, monkeypatch):
    monkeypatch.setattr(monkeypatch, "setenv", lambda *names: None)
    with pytest.raises(UsageError, match="ACCELERATE_TORCH_DEVICE=pretended"):
        trained(NAME)


EXPORTS = {
    "kept layers": ("hf", ["prompt_layers=kept"]),
    "pair": ("hf", []),
    "LoRA": ("hf", ["correction=adapter", "correction.path={adapter}"]),
    "gguf": ("gguf", ["prompt_layers=kept"]),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_has_the_weights_of_the_cpu(name, model_folder, adapter_folder, tmp_path):
    kind, overrides = EXPORTS[name]
    files = []
    for place in PLACES:
        words = [f"model.path={model_folder}", f"model.device={place}", *LAYERS]
        words += [word.replace("{adapter}", str(adapter_folder)) for word in overrides]
        config, folder = compose(words, command=f"export --format {kind}"), tmp_path / place
        record = run_export(config, ExportRequest(folder, kind))
        assert kind == "gguf" or "bit-identical" in record["checked"]
        paths = [*folder.rglob("*.safetensors"), *folder.rglob("*.gguf")]
        files.append({path.relative_to(folder): path.read_bytes() for path in paths})
    assert files[0] and files[0] == files[1]


def test_prompts_are_answered_and_compared(model_folder, tmp_path):
    prompt, words = "the cat sat", [f"model.path={model_folder}", "max_new_tokens=4"]
    expected, got = (
        api.compare(prompt, *words, f"model.device={place}", f"results_dir={tmp_path}")
        for place in PLACES
    )
    for side in ("full", "kept"):
        assert getattr(got, side).token_ids == getattr(expected, side).token_ids
    (answer,) = api.generate(str(model_folder), prompts=[prompt], kept=KEPT, max_new_tokens=4)
    assert answer.token_ids == expected.kept.token_ids


@pytest.mark.parametrize("layers", ["kept", "all"])  # which read the contexts
def test_the_harness_gets_the_answers_of_the_cpu(layers, model_folder):
    from lm_eval.api.instance import Instance

    from ulskip_cli.experiments.lm_eval_adapter import SkippingLM

    endings = [("the cat sat", " on the mat"), ("a b", " c"), ("", "im Haus")]
    scored = [Instance("loglikelihood", {}, texts, 0) for texts in endings]
    until = {"until": ["x"], "max_gen_toks": 4}
    asked = [Instance("generate_until", {}, (prompt, until), 0) for prompt in ("the cat", "a b c")]
    scores, answers = [], []
    for place in PLACES:
        words = [f"model.path={model_folder}", "model.dtype=float32", f"model.device={place}"]
        words += [f"prompt_layers={layers}", "batch_size=2"]
        harness_model = SkippingLM(compose(words, command="lm-eval"))
        scores.append(harness_model.loglikelihood(scored, disable_tqdm=True))
        answers.append(harness_model.generate_until(asked, disable_tqdm=True))
    assert answers[0] == answers[1]
    for expected, got in zip(*scores, strict=True):
        assert got == (pytest.approx(expected[0], rel=1e-4), expected[1])
