"""Command lines with bad input: one line and exit code 2."""

import io
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from ulskip_cli.cli.app import invoke

DEMO = Path(__file__).parents[2] / "results" / "demo"
REFUSED = {  # what a line of words says, by command
    "run": {
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
        "seed=1 seed=1": "expected seed once,",
        "strategy=unifed": "unified",
        "correction=pach": "patch",
        "correction.kind=folded": "requires correction=patch",
        "correction.kind=full": "correction.kind",
        "model=gpt2": "model.path=",
        "max_new_token=9": "max_new_tokens",
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
        "ratio=${nothing}": "'nothing' not found; for the text itself write",
        "name=${name}": "Recursive interpolation",
        "model@x=tiny": "'model@x'. Did you mean to override model?",
        "+model@x=tiny": "unknown key 'x'",
        "~seed": "'seed' does not exist",
        "~strategy": "expected a value for strategy, got none",
        "decoding.stop=[[x]]": "a list of texts, written [a,b]",
        "decoding.temperature=0.7": "decoding.do_sample=true",
        "strategy=null": "strategy 'None'",
        "strategy=custom strategy.layers=[0,x]": "strategy.layers",
        "strategy=skip_decode strategy.horizon=0": "strategy.horizon",
        "strategy._target_=a.B": "_target_",  # only files set classes and names
        "+strategy._target_=a.B": "_target_",
        "decoding.name=beam": "decoding.name",
        "--jsn": "did you mean --json?",
        "--limit 8": "write limit=VALUE",
        "model=tiny model.path=runs/mine": "model=tiny or model.path",
        "model.device=gpu:0": "another device of torch, got 'gpu:0'",
        "task.pair=de-xx": "unknown language 'xx' in task.pair=de-xx",
        "task.pair=german": "task.pair to be two different languages like de-en, got 'german'",
        "task.pair=de-de": "task.pair to be two different languages like de-en, got 'de-de'",
        "task.pair=zh-en": "got zh-en; use task.dataset=files",
        "task.dataset=files": "task.source_file=<path>",
        "task.source_file=x": "task.dataset=files",
        "task.dataset=wmt2": "unknown task.dataset 'wmt2'; did you mean 'wmt2",
        "task.dataset=wmt24": "wmt24 has no task.pair=de-en",
        "task.dataset=some/dataset": "cannot read dataset 'some/dataset'",
        "task=jsonl": "task.file=<jsonl with prompt and reference> or task.dataset=",
        "task=jsonl task.file=a task.dataset=a/b": "got both: a and a/b",
        "task=cnn_dm task.file=nowhere.jsonl": "no such file: nowhere.jsonl",
        "task=cnn_dm task.file=a task.dataset=a/b": "got both: a and a/b",
        "task=cnn_dm task.dataset=cnn": "got 'cnn'; for a file use task.file=",
        "task=jsonl task.target_language=Chinese": "ISO 639-1 code such as zh, got 'Chinese'",
        "task=jsonl task.target_language=zh-CN": "got 'zh-CN'",
        "task=jsonl task.target_language=ZH": "got 'ZH'",
        "task=humaneval task.file=x": "task.allow_code=true",
        "task.metrics=[blue]": "did you mean 'bleu'?",
        "task.prompt='{source}{nope}'": "('nope')",
        "results_dir=": "results_dir to be a path",
        "strategy=custom strategy.layers=[]": "strategy.layers=",
        "strategy=custom strategy.layers=[0,12]": "between 0 and 11, got [0, 12]",
        "strategy=custom strategy.layers=[1,1]": "got [1, 1]",
        "strategy=custom strategy.layers=[2,1]": "got [2, 1]",
        "strategy=custom strategy.skip=[12]": "between 0 and 11, got [12]",
        "strategy=custom strategy.layers=[0] strategy.skip=[1]": "got both",
        "strategy=early_exit strategy.batch=na": "use batch_size=1 or strategy.batch=min",
        "engine.weights=q4_0": "engine.weights=q4_0 requires an engine of another library",
        "strategy=early_exit ratio=4 strategy.min_exit=4": "at most 3 of 12 layers",
        "strategy=one_block strategy.first=7": "strategy.first between 1 and 5",
        "strategy=block_influence strategy.scores=[1,2]": "12 values in strategy.scores",
        "strategy=search strategy.layers=[0,5]": "6 of 12 layers in strategy.layers",
        "strategy=search strategy.budget=0": "strategy.budget >= 1",
        "decoding=self_speculative batch_size=1 strategy=skip_decode": "strategy=unified",
        "decoding=self_speculative batch_size=1 engine=llama_cpp": "decoding.draft=ngram",
        "decoding=prompt_lookup batch_size=2": "use batch_size=1",
        "task=jsonl task.file=a,b.jsonl": "one value",
        "model=random": "models without a tokenizer; use another model, or `ulskip bench`",
        "task.metrics=bleu,chrf": "write task.metrics=[bleu,chrf]",
        "name=a,b": "once for each value",
        "experiment=reproduce,paper": "once for each value",
        "experiment=reproduce": "use `ulskip sweep experiment=reproduce`",
        "strategy=early_exit batch_size=1 prompt_layers=kept": "prompt_layers=all",
        "prompt_layers=first:13": "at most 12 layers",
        "prompt_layers=first:0": "with K >= 1",
        "prompt_layers=first:3 engine=llama_cpp": "prompt_layers=all",
    },
    "train": {
        "train.ratio=2": "unknown key 'train.ratio'; did you mean 'train.ratios'?",
        "train=papr": "did you mean 'paper'?",
        "decoding=beam": "unknown key 'decoding'",
        "task=jsonl": "task.file=",
        "limit=4 output=": "output to be a path",
        "train.ce_weight=0": "train.ce_weight",
        "train.own.samples=2": "train.responses=own",
        "train.ratios=[2,2]": "without repetitions",
        "train.ratios=9": "ratio=9 is out of reach",
        "train.precision=fp16": "requires a GPU",
        "model.device=cuda:1": "CUDA_VISIBLE_DEVICES=1",
        "model=random model.path=llama-12x256": "without a tokenizer",
        "strategy=search": "training with strategy=search",
        "strategy=early_exit strategy.min_exit=12": "lower strategy.min_exit",
        "strategy=early_exit train.distill_weight=1": "train.distill_weight",
        "strategy=early_exit prompt_layers=kept": "prompt_layers=all",
        "prompt_layers=first:3": "prompt_layers=all",
        "train=lora correction.rank=4": "correction.rank",
        "train.method=full train.gap_weight=2": "train.gap_weight",
        "train.method=full train.lora.rank=8": "train.lora",
        "train=adapter strategy=full": "another strategy than full",
        "train=adapter strategy=early_exit": "early exit; use strategy=unified",
        "train=adapter strategy=skip_decode correction.kind=folded": "later positions",
        "train=adapter prompt_layers=kept": "prompt_layers=all",
        "train=adapter train.freeze_embeddings=true": "train.freeze_embeddings",
        "train=adapter train.start=nowhere": "train.start",
        "train=adapter correction.kind=none train.lora.rank=0": "train.lora.rank=16",
        "limit=3 train.held_out=3": "train.held_out below the number of examples, 3, got 3",
        "limit=3 offset=100000": "offset",
        "limit=3 train.validation={limit:3} train.held_out=3": "got both",
        "limit=3 train.validation={pair:de-xx}": "train.validation: ",
        "limit=3 train.validation={limit:2.5}": "train.validation: expected limit to be a whole",
        "limit=3 train.validation={limit:0}": "train.validation: expected limit >= 1, got 0",
        "train.training_args={learning_speed:1}": "learning_speed",
        "train.training_args={gradient_checkpointing:true}": "less memory train.batch_size",
        "train.training_args={fsdp:full_shard}": "train.training_args.fsdp",
        "train.training_args={deepspeed:zero3.json}": "train.training_args.deepspeed",
        "train.training_args={learning_rate:1.0}": "train.training_args.learning_rate",
        "train.training_args={save_only_model:true}": "train.training_args.save_only_model",
        "train.training_args={per_device_eval_batch_size:1}": "per_device_eval_batch_size",
        "train.training_args={lr_scheduler_type:reduce_lr_on_plateau}": "e.g. cosine",
        "train.ratios=1,2": "write train.ratios=[1,2]",
        "seed=1,2": "once for each value",
        "ratio=2": "did you mean 'train.ratios'?",
    },
    "tune": {
        "speedup=2 quality=0.9": "either speedup=S",
        "speedup=2 limit=20 choice_examples=3": "choice_examples",
        "quality=1.1": "quality",
        "speedup=2 strategy=unified": "does not read strategy",
        "speedup=2 correction=patch": "does not read correction",
        "speedup=2 model=random": "without a tokenizer",
        "quality=0.9 decoding=prompt_lookup batch_size=1": "drafts",
        "quality=0.9 experiment=reproduce": "one point",
        "speedup=2 candidates=[]": "at least one candidate",
        "speedup=2 candidates=['ratio=2']": "candidates, got ratio=2",
        "speedup=2 candidates=['prompt_layers=kept']": "candidates, got prompt_layers=kept",
        "speedup=2 candidates=['strategy=skip_decode']": "position-dependent layers",
        "speedup=2 candidates=['strategy=early_exit']": "early exit",
        "speedup=2 candidates=['strategy=full']": "skip layers",
        "speedup=2 candidates=['correction=patch']": "strategy=NAME",
        "speedup=2 candidates=['correction.path=x']": "no skip adapter",
        "speedup=1.5,2": "once for each value",
        "speedup=50": "speedup <= 3.89",
        "speedup=1.5 decoding=self_speculative": "does not support drafts",
    },
    "sweep": {
        "ratio=2, 3": "without spaces",
        "model@x=tiny,hf": "once for each",
        "ratio=2,x": "ratio to be a number",
        "ratio=range(1,3,0) --dry-run": "got 'ratio=range(1,3,0)'",
        "ratio=range(5,2)": "got none from ratio=range(5,2)",
        "ratio=range(1,1000000000000) --dry-run": "at most 1000 points",
        "ratio=interval(2,5)": "got 'ratio=interval(2,5)'",
        "ratio=glob(*)": "got 'ratio=glob(*)'",
        "strategy=glob(zzz*)": "strategy=glob(zzz*)",
        "strategy=full,unified strategy.spacnig=even": "strategy.spacnig",
        "strategy=unified strategy.batch=na": "strategy.batch",
        "ratio=2 name=a,b": "got results/a, results/b; set one name=",
        "experiment=reproduce,paper": "one experiment, got 'experiment=reproduce,paper'",
        "ratio=2,3 decoding.draft_tokens=x": "decoding.draft_tokens to be a whole number",
    },
    "bench": {
        "ratio=99": "ratio=99",
        "model=random model.path=no-shape": "unknown model shape 'no-shape'",
        "speed.new_tokens=600": "speed.prompt_tokens and the timed tokens",
        "strategy=skip_decode strategy.horizon=2000": "strategy.horizon",
        "speed.enabled=false": "does not read speed.enabled",
        "strategy=early_exit": "early exit",
    },
    "generate": {
        "ratio=2": "expected a prompt before the keys, got 'ratio=2'",
        "\u00a0": "empty text",  # a space that does not separate words
        "x ratio=2 ratio=3": "expected ratio once,",
        "Ich habe ratio=2": "put the prompt in quotes",
        "a ratio=99": "ratio=99",
        "a model=random": "without a tokenizer",
        "a baseline_engine=torch engine=transformers": "does not read baseline_engine",
        "a model=smollm2-135m correction=patch": "correction.path=FOLDER",
        "a model=smollm2-135m strategy=search": "strategy.KEY=VALUE",
        "a max_new_tokens=600": "context",
    },
    "plan": {
        "ratio=0.5": "ratio >= 1, got 0.5",
        "strategy.patch=full": "unknown key 'strategy.patch'",
        "--config-dir nowhere": "--config-dir to be a folder",
        f"model.path={'a' * 300}": "aaa",
        "model.path=~nouser/x": "'~nouser/x'",
    },
    "config": {
        "stratgy": "did you mean 'strategy'?",
        "strategy=unifed": "did you mean 'unified'?",
        "speed.secnds": "did you mean 'speed.seconds'?",
    },
    "report": {
        "nowhere": "runs.jsonl, or a folder of such folders, got 'nowhere'",
        f"{DEMO} --compare nowhere": "got 'nowhere'",
        f"{DEMO} --check": "--compare FOLDER",
        f"{DEMO} --check --compare paper": "--compare FOLDER",
    },
    "export": {
        "--to ": "to be a path, got an empty text",
        "--to out --format onnx": "unknown --format 'onnx'",
        "model=tiny --to /": "expected a new folder or an earlier export for --to, got /",
    },
    "": {
        "tune": "either speedup=S",
        "--verison": "did you mean --version?",
        "pln": "did you mean 'plan'?",
        "ratio=2": "write e.g. ulskip run ratio=2",
        "--json run": "unknown option --json",
        "score nowhere": "got 'nowhere'",
        "report ": "to be a path, got an empty text",
        "export": "--to",
        "generate": "expected a prompt before the keys, got none",
    },
}
LINES = {
    f"{command} {line}".lstrip(): named
    for command, lines in REFUSED.items()
    for line, named in lines.items()
}


@pytest.mark.parametrize(("line", "named"), LINES.items())
def test_bad_input_is_one_line_that_says_what_to_write(capsys, line, named):
    code = invoke(line.split(" "))
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("ulskip: ") and named in err
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
    monkeypatch.setattr("ulskip_cli.core.config.compose", Mock(side_effect=error))
    code, out, err = ulskip("plan")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert told in err


# devices, prompts, and the data and arguments of a training
LOADED = ("device=gpu", "max_new_tokens=600", "limit=3", "learning_speed", "fp16")


def test_help_plans_and_usage_errors_import_no_torch():
    lines = [["--help"], ["run", "--help"], ["plan"], ["sweep", "ratio=2,3", "--dry-run"]]
    lines += [line.split(" ") for line in LINES if not any(word in line for word in LOADED)]
    code = (
        "import sys; from ulskip_cli.cli.app import invoke\n"
        f"for line in {lines!r}: invoke(line); assert 'torch' not in sys.modules, line"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
