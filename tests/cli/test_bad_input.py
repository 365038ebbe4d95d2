"""Command lines with bad input: one line and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

BAD = [
    ["pln"],
    ["run", "--jsn"],
    ["run", "--limit", "8"],
    ["run", "strategy=unifed"],
    ["run", "ratoi=2"],
    ["run", "ratio"],
    ["run", "ratio=99", "model=random"],
    ["run", "ratio=2,3"],
    ["run", "model=hf", "model.path=./nowhere"],
    ["run", "model=random", "task.dataset=files"],
    [
        "run",
        "model=random",
        "task.dataset=files",
        "task.source_file=no.de",
        "task.reference_file=no.en",
    ],
    ["run", "model=random", "task.pair=de-xx"],
    ["run", "model=random", "task=cnn_dm", "task.file=nowhere.jsonl"],
    ["run", "model=random", "task=jsonl"],
    ["run", "model=random", "task.metrics=[blue]"],
    ["run", "model=random", "task.dataset=some/dataset"],
    ["run", "model.path=some/model"],
    ["run", "model=random", "memory_budget=3GB"],
    ["run", "model=random", "decoding.temperature=0.5"],
    ["plan", "model=random", "memory_budget=lots"],
    ["score", "nowhere"],
    ["score", "nowhere", "--metrc", "ter"],
    ["run", "model=random", "strategy=custom", "strategy.layers=[0,99]"],
    ["plan", "model=random", "ratio=0.5"],
    ["sweep", "ratio=2,x"],
    ["plan", "--config-dir", "nowhere"],
    ["bench", "ratoi=2"],
    ["bench", "ratio=2,99", "model=random"],
    ["bench", "model=random", "baseline=false"],
    ["bench", "model=random", "limit=8"],
    ["bench", "model=random", "model.path=no-shape"],
    ["train", "train.ratios=9"],
    ["train", "train=nonsense"],
    ["train", "task=jsonl"],
    ["train", "model.quantization=torchao-int8"],
    ["train", "train.training_args={fsdp:full_shard}"],
    ["train", "limit=4", "output="],
    ["sweep", "ratio=range(1,3,0)", "--dry-run"],
    ["sweep", "ratio=range(1,1000000000000)", "--dry-run"],
    ["sweep", "ratio=range(1,100)", "seed=range(1,100)", "--dry-run"],
    ["run", "model=random", "batch_size=100000000"],
    ["run", "model=random", "ratio=nan", "--print-config"],
    ["run", "model=random", "decoding=sample", "decoding.temperature=nan"],
    ["run", "model=random", "decoding.repetition_penalty=inf"],
    ["run", "model=random", "strategy.name=full"],
    ["run", "model=random", "strategy.name=null"],
    ["run", "model=random", "seed=99999999999999999999"],
    ["run", "model=random", "results_dir="],
    ["plan", f"model.path={'a' * 300}"],
    ["plan", "model.path='~nouser/x'"],
    ["plan", "a" * 300],
    ["plan", "--config-dir", "a" * 300],
    ["export", "model=tiny", "--to", "/"],
    ["export", "model=tiny", "--to", "~nouser/x"],
    ["export", "model=tiny", "--to", ""],
    ["export", "model=tiny", "--to", "nowhere", "--shard-size", "0"],
    ["report", ""],
    ["report", "nowhere", "--output", ""],
]
MISTYPED = {  # the likeliest errors, with what the line names
    "ratio=abc": "ratio",
    "ratio=": "ratio",
    "ratio 2.0": "ratio",
    "--ratio=2": "ratio=",
    "--ratio 2": "--ratio",
    "ratio=2,5": "ratio",
    "tsak=wmt": "task",
    "strategy=unifed": "unified",
    "strategy=custm": "custom",
    "strategy.spacing=evn": "strategy.spacing",
    "strategy.spacng=even": "strategy.spacing",
    "strategy.patch=full": "correction=patch",
    "strategy.scores=[1,x] strategy=block_influence": "strategy.scores",
    "correction=pach": "patch",
    "correction=patch correction.rank=0": "correction.rank",
    "correction.rank=4": "correction.rank",
    "model.skip_adapter=x": "correction=adapter",
    "model=gpt2": "model.path=",
    "model.dtype=float61": "model.dtype",
    "engine=fast": "engine",
    "decoding.engine=fast": "engine",
    "decoding.max_new_token=9": "decoding.max_new_tokens",
    "decoding.num_beams=true": "decoding.num_beams",
    "task.pair=german": "task.pair",
    "batch_size=8.5": "batch_size",
    "limit=all": "limit",
    "speed.enabled=ja": "speed.enabled",
    "baseline=0.5": "baseline",
    "prompt_layers=keep": "prompt_layers",
    "launcher.workers=auto": "launcher.workers",
}


@pytest.mark.parametrize(("line", "named"), MISTYPED.items())
def test_a_mistyped_word_is_one_line_that_names_the_key(ulskip, line, named):
    code, out, err = ulskip("run", *line.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert named in err and "ULSKIP_DEBUG" not in err
    assert not any(words in err for words in ("pydantic", "Input should", "validation error"))


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(ulskip, arguments):
    code, out, err = ulskip(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("ulskip: ")
    assert len(err.splitlines()) == 1
    assert "ULSKIP_DEBUG" not in err


@pytest.mark.parametrize(
    "place", ["{}", "{}=1", "ratio={}", "strategy={}", "model.path={}", "--{}"]
)
def test_a_value_of_5000_characters_is_not_echoed(ulskip, place):
    code, _, err = ulskip("plan", "model=tiny", place.format("x" * 5000))
    assert (code, len(err.splitlines())) == (2, 1)
    assert len(err) < 1000


def test_an_operating_system_error_names_the_path(ulskip, monkeypatch):
    from ulskip_cli.core import config

    def fail(*args):
        Path("/nowhere/at/all").read_text()

    monkeypatch.setattr(config, "compose", fail)
    code, _, err = ulskip("plan")
    assert (code, "/nowhere/at/all" in err, "ULSKIP_DEBUG" in err) == (1, True, False)


def test_a_lost_connection_is_one_line(ulskip, monkeypatch):
    def lose(*arguments):
        raise ConnectionError("connection lost")

    monkeypatch.setattr("ulskip_cli.core.config.compose", lose)
    code, out, err = ulskip("plan")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "connection lost" in err


def test_bad_models_and_contexts_are_refused_before_any_weight_is_loaded(
    ulskip, overrides, model_folder, tmp_path, quick
):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "long.de").write_text("der Hund " * 60 + "\n")
    files = [
        "task.dataset=files",
        f"task.source_file={tmp_path}/long.de",
        f"task.reference_file={tmp_path}/long.de",
    ]
    cases = {
        "cannot load a tokenizer": ["run", f"model.path={bare}", *quick],
        "example 0: ": ["run", *overrides, *files],
        "the model's tokenizer has no chat template": ["run", *overrides, "task.template=chat"],
        "unknown option of transformers' generate 'lenght": [
            "run",
            *overrides,
            "decoding.generate_kwargs={lenght_penalty: 1}",
        ],
        "decoding.generate_kwargs.use_cache": [
            "run",
            *overrides,
            "decoding.generate_kwargs={use_cache: false}",
        ],
    }
    for expected, arguments in cases.items():
        code, out, err = ulskip(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert expected in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["plan", "model=random"],
        ["sweep", "ratio=2,3", "--dry-run"],
        *BAD,
    ],
    ids=" ".join,
)
def test_help_plans_and_usage_errors_import_no_torch(arguments):
    code = (
        f"import sys; from ulskip_cli.cli.app import invoke; invoke({arguments!r});"
        " sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )
