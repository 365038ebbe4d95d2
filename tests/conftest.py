"""Shared fixtures. Tests use no network and assert no times."""

import os
import shutil
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import create_autospec

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from hypothesis import settings
from reference import ARCHITECTURES, NEW_STYLE, NUM_LAYERS, build_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ulskip_cli.core import engines
from ulskip_cli.core.config import use_config_dir

# Every run draws the same values; `make fuzz` draws new ones.
settings.register_profile("fixed", deadline=None, max_examples=50, derandomize=True)
draws = int(os.environ.get("DRAWS", 500))
settings.register_profile("new", deadline=None, max_examples=draws, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(params=sorted(ARCHITECTURES))
def model(request):
    """Return a tiny random model of each architecture in turn."""
    return build_model(request.param)


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    """Measure the rate of reading memory with few bytes, because tests need no such rate."""
    monkeypatch.setattr("ulskip_cli.experiments.paired_timing.READ_BYTES", 2**16)


@pytest.fixture(autouse=True)
def no_config_dir():
    """Let the folder of --config-dir of one test be unknown to the next."""
    yield
    use_config_dir(None)


@pytest.fixture
def installed(monkeypatch):
    """Let the packages of all engines seem to be installed."""
    monkeypatch.setattr(
        engines, "find_spec", lambda name: find_spec(name) or ModuleSpec(name, None)
    )


@pytest.fixture(scope="module")
def single_thread():
    """Compute with one thread, so that sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def spy(monkeypatch):
    """Return a function that lets a mock record the calls of a function or a method, which is
    called as before.
    """

    def watch(owner, name):
        real = getattr(owner, name)
        seen = create_autospec(real, side_effect=real)
        monkeypatch.setattr(owner, name, seen)
        return seen

    return watch


@pytest.fixture
def llama():
    """Return a tiny random Llama."""
    return build_model("llama")


TEXTS = ["the cat sat on the mat", "der Hund schläft im Haus", "Translate German to English:"]


@pytest.fixture(scope="session")
def tokenizer():
    """Train a byte-level BPE tokenizer that pads on the left."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    options = {"special_tokens": ["<pad>", "<eos>"], "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **options)
    inner.train_from_iterator([*TEXTS, "a b c d e f g h i j"], trainer)
    ends = {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **ends)


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """Save a random Llama with its tokenizer, as a Hugging Face model folder."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    options = {**NEW_STYLE, **ends, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    config = transformers.LlamaConfig(**options)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied_model(model_folder, tmp_path):
    """Return a copy of the saved model, to be changed."""
    return shutil.copytree(model_folder, tmp_path / "copied_model")


@pytest.fixture(scope="session")
def train(model_folder):
    """Return a function that trains the saved model and returns the record."""
    from ulskip_cli.core.config import compose_training
    from ulskip_cli.core.progress import ProgressCallback
    from ulskip_cli.training.training_run import run_training

    def call(output, *overrides, progress=None):
        model = [f"model.path={model_folder}", "model.dtype=float32", f"output={output}"]
        return run_training(compose_training([*model, *overrides]), progress or ProgressCallback())

    return call


@pytest.fixture
def ulskip(capsys):
    """Return a function that runs a command line and returns its exit code, standard output and
    standard error. A later key replaces an earlier one, which a command line would refuse.
    """
    from ulskip_cli.cli.app import invoke

    def call(*arguments):
        words = {
            word.partition("=")[0] if "=" in word else n: word
            for n, word in enumerate(map(str, arguments))
        }
        code = invoke(list(words.values()))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def quick():
    """Return overrides for few examples, tokens and timed pairs."""
    few = ["limit=3", "max_new_tokens=4"]
    return [*few, "speed.seconds=0", "speed.new_tokens=3"]


@pytest.fixture
def overrides(model_folder, tmp_path, quick):
    """Return overrides of a quick run of the saved model into a temporary results folder."""
    model = ["model=hf", f"model.path={model_folder}", "model.dtype=float32"]
    return [*model, f"results_dir={tmp_path}", *quick]


@pytest.fixture
def point(llama, tokenizer):
    """Return a function of overrides: a decoder, its encoded workload and its configuration."""
    from ulskip_cli.core.config import compose
    from ulskip_cli.core.model_metadata import ModelMetadata
    from ulskip_cli.engines.base import Views
    from ulskip_cli.engines.decoder import Decoder
    from ulskip_cli.experiments.evaluate import encode_examples
    from ulskip_cli.experiments.point import Point, TaskExamples
    from ulskip_cli.strategies.plan import make_plan

    llama.resize_token_embeddings(len(tokenizer))

    def build(*overrides, context=None):
        config = compose(["max_new_tokens=5", "batch_size=4", "limit=5", *overrides])
        metadata = ModelMetadata(NUM_LAYERS, None, None, context=context)
        plan = make_plan(config, metadata)
        data = TaskExamples(config.task, config.task.examples()[: config.limit])
        folder = SimpleNamespace(metadata=metadata)
        made = Point(config, folder, plan, data, None, settings=None)
        return Decoder(Views.of(llama, plan)), encode_examples(data, made, tokenizer), config

    return build
