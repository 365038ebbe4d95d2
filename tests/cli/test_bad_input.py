"""Command lines with bad input: one line and exit code 2."""

import io
import re
import subprocess
import sys

import pytest
import yaml

from ulskip_cli.cli.app import invoke

BAD = [
    *("generate a b", "pln", "ratio=2", "--json run", "run --jsn", "run --limit 8"),
    *("run ratio=99 model=random", "run model=random task.pair=de-xx"),
    "run model=random task=cnn_dm task.file=nowhere.jsonl",
    *("run model=random task.metrics=[blue]", "run model=random task.dataset=some/dataset"),
    "run model=random strategy=custom strategy.layers=[0,99]",
    "run model=random results_dir=",
    "plan model=random ratio=0.5",
    *("plan model=random strategy.patch=full", "plan --config-dir nowhere"),
    *(f"plan model.path={'a' * 300}", "plan model.path='~nouser/x'", "score nowhere"),
    *("sweep ratio=2,x", "sweep ratio=range(1,3,0) --dry-run"),
    "sweep ratio=range(1,1000000000000) --dry-run",
    *("bench ratio=99 model=random", "bench model=random model.path=no-shape"),
    *("train train.ratios=9", "train task=jsonl"),
    *("train train.training_args={fsdp:full_shard}", "train limit=4 output="),
    *("export model=tiny --to /", "export", "export --to out --format onnx"),
]
BAD_LINES = [*map(str.split, BAD), ["report", ""], ["export", "--to", ""]]
BAD_LINES.append(["run", "task.prompt='{source} {nope}'"])
MISTYPED = {  # the likeliest errors, with what the line names
    "ratio=abc": "ratio",
    "--ratio=2": "ratio=",
    "ratio==2": "did you mean ratio=2?",
    "ratio:2": "did you mean ratio=2?",
    "ratio=2,5": "did you mean ratio=2.5?",
    "task=WMT": "did you mean 'wmt'?",
    "model=smollm": "did you mean 'smollm2-135m'",
    "decoding.num_beams=100000": "decoding.num_beams <= 1000",
    "speed.prompt_tokens=1000000": "speed.prompt_tokens <= 262144",
    f"name={'a' * 256}": "too long",
    "model.path=nowhere.gguf": "no such file",
    "task=jsonl task.file=nowhere.jsonl": "no such file",
    "task=jsonl task.dataset=./nowhere": "no such file",
    "tsak=wmt": "task",
    "strategy=unifed": "unified",
    "correction=pach": "patch",
    "correction.kind=full": "correction.kind",
    "model=gpt2": "model.path=",
    "max_new_token=9": "max_new_tokens",
    "batch_size=8.5": "batch_size",
    "ratio=2x": "ratio=2.0",
    "ratio = 2.0": "without spaces",
    "device=gpu": "model.device",
    "model.device=gpu": "cuda",
    "batch_size=0": "batch_size >= 1",
    "strategy=custom strategy.layers=0,2": "strategy.layers=[0,2]",
    "task=jsonl task.source_file=x": "task.source_file requires task=wmt",
    "strategy.spacng=even": "did you mean 'strategy.spacing'?",
    "ratio": "key=value",
    "model=hf": "model.path",
    "model=hf model.path=./nowhere": "no such file or folder: model.path='./nowhere'",
    "model.path=some/model": "HF_HUB_OFFLINE=1",
    "model=random model.path=bloom-7b": "bloom-7b1",
    "model=random model.path=nowhere.json": "nowhere.json",
    "name=a/b": "name",
    "+decoding.surprise=1": "decoding.surprise",
    "ratio=${nothing}": "nothing",
    "decoding.stop=[[x]]": "a list of texts, written [a,b]",
    "decoding.temperature=0.7": "decoding.do_sample=true",
    "strategy=null": "strategy 'None'",
    "strategy=custom strategy.layers=[0,x]": "strategy.layers",
    "strategy=skip_decode strategy.horizon=0": "strategy.horizon",
    "strategy._target_=a.B": "_target_",  # only files set classes and names
    "+strategy._target_=a.B": "_target_",
    "decoding.name=beam": "decoding.name",
}


OTHERS = {
    "run task.metrics=bleu,chrf": "write task.metrics=[bleu,chrf]",
    "train train.ratios=1,2": "write train.ratios=[1,2]",
    "train seed=1,2": "once for each value",
    "tune speedup=1.5,2": "once for each value",
    "run name=a,b": "once for each value",
    "run experiment=reproduce,paper": "once for each value",
    "run experiment=reproduce": "use `ulskip sweep experiment=reproduce`",
    "run strategy=early_exit batch_size=1 prompt_layers=kept": "prompt_layers=all",
    "train ratio=2": "did you mean 'train.ratios'?",
    "sweep ratio=2, 3": "without spaces",
    "--verison": "did you mean --version?",
    "tune speedup=50": "speedup <= 3.89",
    "tune speedup=1.5 decoding=self_speculative": "does not support drafts",
}
LINES = {**{f"run {line}": named for line, named in MISTYPED.items()}, **OTHERS}


@pytest.mark.parametrize(("line", "named"), LINES.items())
def test_a_mistyped_word_is_one_line_that_says_what_to_write(ulskip, line, named):
    code, out, err = ulskip(*line.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert named in err
    words = ("ULSKIP_DEBUG", "pydantic", "Input should", "validation error", "ydra")
    assert not any(word in err for word in (*words, "ulskip sweep name"))


def test_the_model_of_a_training_is_never_named_for_deletion(ulskip, model_folder):
    model = ["model=hf", f"model.path={model_folder}", "limit=4"]
    for output in (model_folder, model_folder.parent):
        code, _, err = ulskip("train", *model, f"output={output}")
        assert code == 2 and "set another output=DIR" in err and "delete" not in err


ONE_VALUE = ["ratio=2,3", "strategy=unified,top_skip", "strategy.spacing=even,reference"]


@pytest.mark.parametrize("override", ONE_VALUE)
@pytest.mark.parametrize("command", ["run", "plan", "export --to x"])
def test_several_values_are_told_a_sweep_that_works(ulskip, command, override):
    code, _, err = ulskip(*command.split(), override)
    assert code == 2
    _, *advised = re.search("`(ulskip sweep .*)`", err)[1].split()
    assert ulskip(*advised, "--dry-run")[0] == 0


def test_a_key_that_is_given_twice_is_refused(capsys):
    for words, key in (("generate x ratio=2 ratio=3", "ratio"), ("run seed=1 seed=1", "seed")):
        assert invoke(words.split()) == 2
        assert capsys.readouterr().err.startswith(f"ulskip: expected {key} once,")


def test_bytes_that_are_no_text_are_refused(ulskip, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    for words in (["-"], ["\udcff", "ratio=2"]):
        code, out, err = ulskip("generate", *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and "UTF-8" in err


ROWS = {
    '{"prompt": "a", "reference": null}': "under reference, got null",
    '{"prompt": "a", "reference": " "}': 'under reference, got " "',
    '{"prompt": "a", "reference": ["b"]}': 'under reference, got ["b"]',
    '{"prompt": true, "reference": "b"}': "under prompt, got true",
    '{"prompt": NaN, "reference": "b"}': "without NaN",
    '{"question": "a", "reference": "b"}': "only the keys question, reference",
}


@pytest.mark.parametrize(("row", "told"), ROWS.items())
def test_a_row_that_is_no_example_is_told_why(ulskip, tmp_path, row, told):
    (tmp_path / "x.jsonl").write_text(row)
    code, _, err = ulskip("run", "task=jsonl", f"task.file={tmp_path}/x.jsonl")
    assert code == 2 and told in err and "1: expected a" in err


NAMES = ["x.jsonl", "data (1).jsonl", "ü.jsonl", "[x].jsonl", "a,b.jsonl", "~;'=&#x!.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_is_taken_as_it_is(ulskip, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_text('{"prompt": "a", "reference": "b"}')
    words = ["task=jsonl", f"task.file=~/{name}"]
    shown = yaml.safe_load(ulskip("run", *words, "--print-config")[1])
    assert shown["task"]["file"] == f"~/{name}"
    code, out, _ = ulskip("sweep", *words, "ratio=2,3", "--dry-run")
    assert code == 0 and "3 points" in out


def test_a_key_is_not_similar_to_others_because_of_their_section(ulskip):
    assert "did you mean" not in ulskip("run", "model.quantization=int8")[2]


@pytest.mark.parametrize("arguments", BAD_LINES, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(ulskip, arguments):
    code, out, err = ulskip(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("ulskip: ") and "ULSKIP_DEBUG" not in err


@pytest.mark.parametrize("place", ["{}", "{}=1", "ratio={}", "model.path={}", "--{}"])
def test_a_value_of_5000_characters_is_not_echoed(ulskip, place):
    code, _, err = ulskip("plan", "model=tiny", place.format("x" * 5000))
    assert (code, len(err.splitlines())) == (2, 1)
    assert len(err) < 1000


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("connection lost"), "connection lost"),
        (FileNotFoundError(2, "none", "/nowhere/at/all"), "/nowhere/at/all"),
        (ZeroDivisionError("oops\nmore"), "ZeroDivisionError: oops more (ULSKIP_DEBUG=1"),
    ],
)
def test_an_unforeseen_error_is_one_line_and_exit_code_1(ulskip, monkeypatch, error, told):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("ulskip_cli.core.config.compose", fail)
    code, out, err = ulskip("plan")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert told in err


def test_help_plans_and_usage_errors_import_no_torch():
    lines = [["--help"], ["run", "--help"], ["plan"], ["sweep", "ratio=2,3", "--dry-run"]]
    lines += BAD_LINES
    code = (
        "import sys; from ulskip_cli.cli.app import invoke\n"
        f"for line in {lines!r}: invoke(line); assert 'torch' not in sys.modules, line"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
