"""Against lm-evaluation-harness's own `hf` model, on a task of four sentences and the embedded
model.
"""

import json
import shutil
import sys

import datasets
import lm_eval
import pytest
import torch
import yaml
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager

from ulskip_cli.cli.lm_eval import parse_options
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ASSETS
from ulskip_cli.experiments import lm_eval_adapter
from ulskip_cli.experiments.lm_eval_run import evaluate, make_records
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.loading import pick_device

pytestmark = pytest.mark.filterwarnings("ignore")

SENTENCES = [
    ("Der Hund schläft.", "The dog is sleeping.", "The cat is eating."),
    ("Ich habe Hunger.", "I'm hungry.", "I'm tired."),
    ("Wo ist der Bahnhof?", "Where is the station?", "What time is it?"),
    ("Sie liest ein Buch.", "She is reading a book.", "He bought a car."),
]
PROMPT = "{{german}}\nTranslate German to English:"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with tasks of every kind: choose between answers, between single tokens, write one,
    score a text.
    """
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"german": g, "english": right, "options": [right, wrong], "label": 0}
        for g, right, wrong in SENTENCES
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "pairs.jsonl")}},
        "test_split": "test",
        "doc_to_text": PROMPT,
        "doc_to_target": "{{label}}",
    }
    accuracy = {
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    made = {
        "sentences": {**accuracy, "doc_to_choice": "{{options}}"},
        "words": {**accuracy, "doc_to_choice": ["The", "I"]},
        "writing": {
            "output_type": "generate_until",
            "doc_to_target": "{{english}}",
            "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 16},
        },
        "reading": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{english}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    for name, own in made.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({**common, **own, "task": f"ulskip_{name}"})
        )
    return folder


@pytest.fixture(scope="module")
def evaluated(tasks):
    """Return a function that evaluates a model with the harness: its results, and the answers to
    every request by task.
    """
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = [f"ulskip_{name}" for name in ("sentences", "words", "writing", "reading")]

    def evaluate(kind, **arguments):
        found = lm_eval.simple_evaluate(
            model=kind,
            model_args=arguments,
            tasks=names,
            task_manager=manager,
            batch_size=3,
            device="cpu",
            bootstrap_iters=0,
        )
        answers = {task: [row["resps"] for row in rows] for task, rows in found["samples"].items()}
        return found, answers

    return evaluate


@pytest.fixture(scope="module")
def hf(evaluated):
    return evaluated("hf", pretrained=str(ASSETS / "tiny"), dtype="float32")


def test_at_full_depth_every_answer_is_that_of_the_harness_own_model(evaluated, hf):
    found, answers = evaluated("ulskip", model="tiny", strategy="full")
    assert answers == hf[1]
    for task, values in hf[0]["results"].items():
        assert {k: v for k, v in found["results"][task].items() if k != "alias"} == {
            k: v for k, v in values.items() if k != "alias"
        }


def test_continuations_are_scored_by_the_kept_layers_unless_all_are_asked_for(evaluated, hf):
    found, kept = evaluated("ulskip", model="tiny", ratio=3)
    rows = [record.to_row() for record in make_records(found)]
    assert {row["task"] for row in rows} == {f"lm_eval:{task}" for task in found["results"]}
    assert {(row["prompt_layers"], row["scored_prompt_layers"]) for row in rows} == {
        ("all", "kept")
    }
    assert all(
        len(row["kept_layers"]) == 4 and row["status"] == "done" and row["num_examples"] == 4
        for row in rows
    )
    assert kept["ulskip_words"] != hf[1]["ulskip_words"]
    assert not any(lm_eval_adapter.FIRST_TOKEN_ONLY in warning for warning in rows[0]["warnings"])
    found, whole = evaluated("ulskip", model="tiny", ratio=3, prompt_layers="all")
    for ours, theirs in zip(
        whole["ulskip_words"], hf[1]["ulskip_words"], strict=True
    ):  # no loss to be seen: hence the warning
        assert [score for ((score, _),) in ours] == pytest.approx(
            [score for ((score, _),) in theirs], abs=1e-4
        )
    assert whole["ulskip_sentences"] != kept["ulskip_sentences"] != hf[1]["ulskip_sentences"]
    row = make_records(found)[0].to_row()
    assert row["scored_prompt_layers"] == "all"
    assert any(
        "8 of" in warning and lm_eval_adapter.FIRST_TOKEN_ONLY in warning
        for warning in row["warnings"]
    )


def test_two_passes_score_as_one_at_full_depth(hf):
    model = lm_eval_adapter.SkippingLM(batch_size=3, device="cpu", model="tiny", strategy="full")
    texts = [
        (None, model.tok_encode("Der Hund schläft."), model.tok_encode(text))
        for text in (" The dog", " a", " I am hungry.")
    ]
    one = model._loglikelihood_tokens(texts, disable_tqdm=True)
    two = model._scored(texts, range(3))
    assert [score for score, _ in two] == pytest.approx([score for score, _ in one], abs=1e-4)
    assert [greedy for _, greedy in two] == [greedy for _, greedy in one]


def test_what_the_harness_cannot_have_is_refused():
    with pytest.raises(UsageError, match="random weights"):
        lm_eval_adapter.SkippingLM(**{"model": "random", "model.path": "llama-12x128"})
    with pytest.raises(UsageError, match="ratio_basis=latency"):
        lm_eval_adapter.SkippingLM(model="tiny", ratio_basis="latency")
    with pytest.raises(UsageError, match=r"only a run measures.*calibration.*strategy\.KEY"):
        lm_eval_adapter.SkippingLM(model="tiny", strategy="skip_decode", ratio=2)


def test_schedules_that_change_from_token_to_token_are_scored_too():
    texts = [(None, [5, 6, 7, 8], [9, 10, 11]), (None, [5, 6], [9])]
    falling = lm_eval_adapter.SkippingLM(
        **{
            "model": "tiny",
            "strategy": "skip_decode",
            "ratio": 2,
            "strategy.horizon": 2,
            "device": "cpu",
        }
    )
    exiting = lm_eval_adapter.SkippingLM(
        **{
            "model": "tiny",
            "strategy": "early_exit",
            "ratio": 2,
            "strategy.horizon": 9,
            "strategy.threshold": 0.5,
            "device": "cpu",
        }
    )
    full = lm_eval_adapter.SkippingLM(model="tiny", strategy="full", device="cpu")
    scores = [
        model._loglikelihood_tokens(texts, disable_tqdm=True) for model in (falling, exiting, full)
    ]
    assert scores[0][0] != scores[1][0] != scores[2][0] != scores[0][0]
    assert scores[1][1][0] == pytest.approx(
        scores[2][1][0], abs=1e-4
    )  # the first token comes from all layers


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_with_a_unit_every_layer_reads_the_context(unit):
    texts = [(None, [5, 6, 7, 8], [9, 10, 11]), (None, [5, 6], [9])]
    half = lm_eval_adapter.SkippingLM(
        **{"model": "tiny", "ratio": 2, "strategy.unit": unit, "device": "cpu"}
    )
    full = lm_eval_adapter.SkippingLM(model="tiny", strategy="full", device="cpu")
    (several, first), (full_several, full_first) = (
        model._loglikelihood_tokens(texts, disable_tqdm=True) for model in (half, full)
    )
    assert first[0] == pytest.approx(full_first[0], abs=1e-4) and several[0] != pytest.approx(
        full_several[0], abs=1e-4
    )
    assert half.record().scored_prompt_layers == "all"


@pytest.fixture
def own_tasks_only(monkeypatch):
    """Leave out the harness's thousands of tasks, whose files take long to read."""
    made = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager,
        "__init__",
        lambda self, *args, **kw: made(self, *args, **{**kw, "include_defaults": False}),
    )


@pytest.fixture
def command(tasks, tmp_path, own_tasks_only, ulskip):
    """Run `ulskip lm-eval` on the tiny model; the exit code and the rows in the folder."""

    def call(*arguments, options=(), tasks_asked="ulskip_sentences"):
        where = ["--include_path", tasks, "--limit", "2", "--tasks", tasks_asked]
        overrides = ["model=tiny", f"results_dir={tmp_path}", *arguments]
        code, out, err = ulskip("lm-eval", *overrides, "--", *where, *options)
        assert code == 0, err
        records = ResultsFolder(tmp_path / "lm_eval").records()
        return out, [record.to_row() for record in records]

    return call


def test_the_command_adds_a_row_for_every_task(command, tmp_path):
    out, rows = command("ratio=2", tasks_asked="ulskip_sentences,ulskip_writing")
    assert "ulskip_sentences" in out
    assert [row["task"] for row in rows] == ["lm_eval:ulskip_sentences", "lm_eval:ulskip_writing"]
    assert rows[0]["lm_eval"]["acc"] in (0.0, 0.5, 1.0)
    assert rows[0]["kept_layers"] == [0, 2, 4, 7, 9, 11]
    assert rows[0]["id"] != rows[1]["id"]
    assert "acc" in (tmp_path / "lm_eval" / "table.md").read_text()
    (written,) = (tmp_path / "lm_eval" / "lm_eval").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["ulskip"]["kept_layers"] == [0, 2, 4, 7, 9, 11]
    assert torch.is_grad_enabled()


def test_device_and_batch_size_are_those_of_the_configuration(command):
    _, rows = command("ratio=2", "model.device=cpu", "batch_size=3")
    assert [(row["device"], row["batch_size"]) for row in rows] == [("cpu", 3)]


def test_without_a_device_the_model_runs_on_a_usable_one(command):
    _, rows = command("ratio=2")
    assert [row["device"] for row in rows] == [str(pick_device("auto"))]


def test_the_harness_own_command_runs_without_a_device_and_a_gpu(
    tasks, own_tasks_only, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = ["--model", "ulskip", "--model_args", "model=tiny,ratio=2"]
    task = ["--tasks", "ulskip_sentences", "--include_path", str(tasks), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *model, *task])
    cli_evaluate()
    assert "ulskip_sentences" in capsys.readouterr().out


def test_a_run_adds_its_own_results_only(command, tmp_path, monkeypatch):
    command("ratio=3", "name=other")
    (other,) = (tmp_path / "other").rglob("results_*.json")
    folder = tmp_path / "lm_eval" / "lm_eval"
    load = TaskManager.load

    def load_while_another_run_ends(self, *arguments):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(other, folder)
        return load(self, *arguments)

    monkeypatch.setattr(TaskManager, "load", load_while_another_run_ends)
    _, rows = command("ratio=2")
    assert (folder / other.name).is_file()
    assert [row["target_speedup"] for row in rows] == [2.0]


def test_options_that_change_answers_have_rows_of_their_own(command, tmp_path):
    asked = {"tasks_asked": "ulskip_writing"}
    command("ratio=2", **asked)
    cache = ["--use_cache", tmp_path / "answers"]
    generation = ["--gen_kwargs", 'max_gen_toks=3,until=["x","y"]']
    _, rows = command("ratio=2", options=[*generation, "--log_samples", *cache], **asked)
    stored = {"gen_kwargs": {"max_gen_toks": 3, "until": ["x", "y"]}}
    assert [row.get("lm_eval_options") for row in rows] == [None, stored]
    (written,) = (tmp_path / "lm_eval" / "lm_eval").rglob("samples_ulskip_writing_*.jsonl")
    sample = json.loads(written.read_text().splitlines()[0])
    assert sample["arguments"]["gen_args_0"]["arg_1"] == {"until": ["x", "y"], "max_gen_toks": 3}
    command("ratio=3", options=cache, **asked)
    assert len(list(tmp_path.glob("answers_*.db"))) == 2  # each schedule has a cache of its own


def test_yaml_files_of_the_harness_and_of_a_task_are_read(tasks, own_tasks_only, tmp_path):
    settings = {"tasks": str(tasks / "sentences.yaml"), "limit": 2, "num_fewshot": 1, "seed": 7}
    (tmp_path / "harness.yaml").write_text(yaml.safe_dump(settings))
    options = parse_options(["--config", str(tmp_path / "harness.yaml"), "--limit", "3"])
    folder, results = evaluate(["model=tiny", f"results_dir={tmp_path}"], options)
    (row,) = (record.to_row() for record in folder.records())
    assert row["task"] == "lm_eval:ulskip_sentences"
    assert (row["num_fewshot"], row["num_examples"]) == (1, 3)
    assert row["lm_eval_options"] == {"seed": [7, 7, 7, 7]}
    assert results["config"]["fewshot_seed"] == 7


def test_unknown_tasks_and_a_missing_chat_template_are_refused(tasks, own_tasks_only, tmp_path):
    where = ["--include_path", str(tasks), "--tasks"]
    with pytest.raises(UsageError, match="ulskip_nothing"):
        evaluate(["model=tiny"], parse_options([*where, "ulskip_nothing"]))
    with pytest.raises(UsageError, match="YAML files"):
        evaluate(["model=tiny"], parse_options([*where, str(tmp_path)]))
    with pytest.raises(UsageError, match="chat template"):
        evaluate(["model=tiny"], parse_options([*where, "ulskip_writing", "--apply_chat_template"]))


@pytest.mark.parametrize("dataset", ["nobody/nothing", "json"])
def test_data_that_cannot_be_read_is_named(tmp_path, own_tasks_only, monkeypatch, dataset):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    kwargs = {"data_files": {"test": str(tmp_path / "missing.jsonl")}} if dataset == "json" else {}
    task = {
        "task": "ulskip_far",
        "dataset_path": dataset,
        "dataset_kwargs": kwargs,
        "test_split": "test",
    }
    shape = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{a}}"}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump({**task, **shape}))
    options = parse_options(["--include_path", str(tmp_path), "--tasks", "ulskip_far"])
    with pytest.raises(UsageError, match=r"ulskip_far .*(nobody/nothing|missing\.jsonl)"):
        evaluate(["model=tiny", f"results_dir={tmp_path}"], options)
