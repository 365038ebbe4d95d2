"""Against lm-evaluation-harness's own `hf` model, on the embedded model and four sentences."""

import json

import lm_eval
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from reference import one_stage, response_logits, save_adapter

from ulskip_cli.api import generate
from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ASSETS
from ulskip_cli.experiments.lm_eval_adapter import FIRST_TOKEN, SkippingLM, make_records
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.loading import pick_device
from ulskip_cli.inference.skip_adapter import zero_adapter

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
    """A folder with tasks that choose an answer or a token, write one, and score a text."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = ""
    for german, right, wrong in SENTENCES:
        row = {"german": german, "english": right, "options": [right, wrong], "label": 0}
        lines += json.dumps(row) + "\n"
    (folder / "pairs.jsonl").write_text(lines)
    data = {"data_files": {"test": str(folder / "pairs.jsonl")}}
    common = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}

    def kind(output_type, *metrics, target="english", prompt=PROMPT, **more):
        listed = [{"metric": metric} for metric in metrics]
        texts = {"doc_to_text": prompt, "doc_to_target": f"{{{{{target}}}}}"}
        return {**common, **texts, "output_type": output_type, "metric_list": listed, **more}

    choice = ("multiple_choice", "acc", "acc_norm")
    until = {"until": ["\n", "."], "max_gen_toks": 16}
    kinds = {
        "sentences": kind(*choice, target="label", doc_to_choice="{{options}}"),
        "words": kind(*choice, target="label", doc_to_choice=["The", "I"]),
        "writing": kind("generate_until", "exact_match", generation_kwargs=until),
        "reading": kind("loglikelihood_rolling", "word_perplexity", prompt=""),
    }
    for name, values in kinds.items():
        task = {**values, "task": f"ulskip_{name}"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def evaluated(tasks):
    """Return a function that evaluates a model: the harness's results and the answers by task."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = [f"ulskip_{name}" for name in ("sentences", "words", "writing", "reading")]

    def evaluate(model, arguments=None):
        asked = {"tasks": names, "task_manager": manager, "batch_size": 3, "device": "cpu"}
        found = lm_eval.simple_evaluate(model, arguments, **asked, bootstrap_iters=0)
        answers = {task: [row["resps"] for row in rows] for task, rows in found["samples"].items()}
        return found, answers

    return evaluate


@pytest.fixture(scope="module")
def hf(evaluated):
    return evaluated("hf", {"pretrained": str(ASSETS / "tiny"), "dtype": "float32"})


def composed(*overrides):
    return compose(overrides, command="lm-eval")


def skipping(*overrides):
    return SkippingLM(composed("model=tiny", "model.device=cpu", "batch_size=3", *overrides))


def test_at_full_depth_every_answer_is_that_of_the_harness_own_model(evaluated, hf):
    results, answers = evaluated(skipping("strategy=full"))
    assert answers == hf[1]
    for task, values in hf[0]["results"].items():
        assert results["results"][task] | {"alias": ""} == values | {"alias": ""}


def test_continuations_are_scored_by_the_kept_layers_unless_all_are_asked_for(evaluated, hf):
    model = skipping("ratio=3")
    results, kept = evaluated(model)
    records = make_records(results, model.record())
    assert {record.task for record in records} == {f"lm_eval:{task}" for task in kept}
    for record in records:
        assert (record.prompt_layers, record.scored_prompt_layers) == ("all", "kept")
        assert (len(record.kept_layers), record.num_examples) == (4, 4)
        assert FIRST_TOKEN not in record.warnings
    assert kept["ulskip_words"] != hf[1]["ulskip_words"]
    model = skipping("ratio=3", "prompt_layers=all")
    whole = evaluated(model)[1]
    for ours, theirs in zip(whole["ulskip_words"], hf[1]["ulskip_words"], strict=True):
        # no loss to be seen: hence the warning
        assert [row[0][0] for row in ours] == pytest.approx([row[0][0] for row in theirs], abs=1e-4)
    assert whole["ulskip_sentences"] != kept["ulskip_sentences"] != hf[1]["ulskip_sentences"]
    record = model.record()
    assert record.scored_prompt_layers == "all" and FIRST_TOKEN in record.warnings


def test_a_strategy_without_its_calibration_is_refused():
    with pytest.raises(UsageError, match=r"uncalibrated.*calibration.*strategy\.KEY"):
        SkippingLM(composed("strategy=skip_decode"))


def scores(*overrides):
    """Score a continuation of three tokens and one of a single token."""
    model = SkippingLM(composed("model=tiny", "model.device=cpu", *overrides))
    texts = [(None, [5, 6, 7, 8], [9, 10, 11]), (None, [5, 6], [9])]
    (several, _), (single, _) = model._loglikelihood_tokens(texts, disable_tqdm=True)
    return several, single, model.record().scored_prompt_layers


def test_exits_whose_contexts_all_layers_read_score_first_tokens_as_the_model():
    exits = ["strategy=early_exit", "strategy.horizon=9", "strategy.threshold=0.5"]
    several, single, layers = scores(*exits)
    full = scores("strategy=full", "decoding=beam")  # beams are for answers
    assert single == pytest.approx(full[1], abs=1e-4) and layers == "all"
    assert several != pytest.approx(full[0], abs=1e-4)
    falling = scores("strategy=skip_decode", "strategy.horizon=2")  # changes from token to token
    assert falling[0] != pytest.approx(full[0], abs=1e-4)


@pytest.mark.parametrize("prompt_layers", ["kept", "all"])
def test_a_skip_adapter_corrects_scores_and_answers(tmp_path, prompt_layers):
    asked = ["model=tiny", "ratio=3", f"prompt_layers={prompt_layers}", "model.device=cpu"]
    plain = SkippingLM(composed(*asked))
    kept, model = plain.plan.kept_layers, plain.loaded.model
    adapter = zero_adapter(model, [kept], PATCHES["full"])
    generator = torch.Generator().manual_seed(0)
    for name, tensor in adapter.tensors().items():
        if name.endswith(".bias"):
            tensor += 20 * torch.randn(tensor.shape, generator=generator)
    save_adapter(adapter, plain.ulskip_config.model, tmp_path)
    corrected = ["correction=adapter", f"correction.path={tmp_path}"]
    adapted = SkippingLM(composed(*asked, *corrected))
    prompt, response = map(plain.tok_encode, ("Der Hund schläft.", " The dog is sleeping."))
    ids, view = torch.tensor([prompt + response]), adapter.view(model, kept)
    with torch.inference_mode():
        logits = view(ids).logits[:, len(prompt) - 1 : -1]
        if prompt_layers == "all":
            parts = ids.split([len(prompt), len(response)], dim=1)
            mask = torch.ones_like(parts[0])
            logits = response_logits(model, one_stage(view, kept), parts[0], mask, parts[1])
    chances = torch.log_softmax(logits[0], -1)
    expected = float(chances.gather(1, torch.tensor(response)[:, None]).sum())
    texts = [(None, prompt, response)]
    ((score, _),) = adapted._loglikelihood_tokens(texts, disable_tqdm=True)
    ((without, _),) = plain._loglikelihood_tokens(texts, disable_tqdm=True)
    assert score == pytest.approx(expected, abs=1e-3)
    assert abs(score - without) > 1e-2
    mine = adapted._model_generate(torch.tensor([prompt]), len(prompt) + 8, [])
    options = {"prompt_layers": prompt_layers, "skip_adapter": adapter, "max_new_tokens": 8}
    (answer,) = generate(model, plain.tokenizer, ["Der Hund schläft."], kept, **options)
    assert mine[0, len(prompt) :].tolist() == answer.token_ids
    assert adapted.record().correction.path == str(tmp_path)


@pytest.fixture
def own_tasks_only(monkeypatch):
    """Leave out the harness's thousands of tasks, whose files take long to read, and its log."""
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "CRITICAL")
    made = TaskManager.__init__

    def make(self, *args, **options):
        made(self, *args, **{**options, "include_defaults": False})

    monkeypatch.setattr(TaskManager, "__init__", make)


@pytest.fixture
def command(tmp_path, own_tasks_only, ulskip):
    """Run `ulskip lm-eval` on the tiny model: the exit code, the output and the error."""

    def call(*overrides, options):
        common = ["model=tiny", f"results_dir={tmp_path}", *overrides]
        return ulskip("lm-eval", *common, "--", *options)

    return call


@pytest.fixture
def rows(tasks, tmp_path, command):
    """Evaluate two examples of tasks; the rows in the folder."""

    def call(*overrides, options=(), asked="ulskip_sentences"):
        where = ["--include_path", tasks, "--limit", "2", "--tasks", asked]
        code, out, err = command(*overrides, options=[*where, *options])
        assert code == 0 and asked.partition(",")[0] in out, err
        return [record.to_row() for record in ResultsFolder(tmp_path / "lm_eval").records()]

    return call


def test_the_command_adds_a_row_for_every_task(rows, tmp_path):
    found = rows("ratio=2", "batch_size=3", asked="ulskip_sentences,ulskip_writing")
    assert [row["task"] for row in found] == ["lm_eval:ulskip_sentences", "lm_eval:ulskip_writing"]
    assert found[0]["lm_eval"]["acc"] in (0.0, 0.5, 1.0)
    assert found[0]["kept_layers"] == [0, 2, 4, 7, 9, 11]
    assert found[0]["id"] != found[1]["id"]
    assert "acc" in (tmp_path / "lm_eval" / "table.md").read_text()
    (written,) = (tmp_path / "lm_eval" / "lm_eval").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["ulskip"]["kept_layers"] == [0, 2, 4, 7, 9, 11]
    assert torch.is_grad_enabled()
    assert (found[0]["device"], found[0]["batch_size"]) == (str(pick_device("auto")), 3)


def test_options_that_change_answers_have_rows_of_their_own(rows, tmp_path):
    rows("ratio=2", asked="ulskip_writing")
    generation = ["--gen_kwargs", 'max_gen_toks=3,until=["x","y"]']
    found = rows("ratio=2", options=[*generation, "--log_samples"], asked="ulskip_writing")
    stored = {"gen_kwargs": {"max_gen_toks": 3, "until": ["x", "y"]}}
    assert [row.get("lm_eval_options") for row in found] == [None, stored]
    (written,) = (tmp_path / "lm_eval" / "lm_eval").rglob("samples_ulskip_writing_*.jsonl")
    sample = json.loads(written.read_text().splitlines()[0])
    assert sample["arguments"]["gen_args_0"]["arg_1"] == {"until": ["x", "y"], "max_gen_toks": 3}


def test_options_of_the_harness_for_batches_and_the_device_win(rows):
    (row,) = rows("batch_size=3", options=["--batch_size", "2", "--device", "cpu"])
    assert (row["batch_size"], row["device"]) == (2, "cpu")


def test_a_generation_option_that_no_key_of_decoding_has_is_refused(tasks, command):
    where = ["--include_path", tasks, "--limit", "2", "--tasks", "ulskip_writing"]
    code, _, err = command(options=[*where, "--gen_kwargs", "length_penalty=0.5"])
    assert (code, "length_penalty" in err) == (2, True), err


def test_yaml_files_of_the_harness_and_of_a_task_are_read(tasks, command, tmp_path):
    settings = {"tasks": str(tasks / "sentences.yaml"), "limit": 2, "num_fewshot": 1, "seed": 7}
    (tmp_path / "harness.yaml").write_text(yaml.safe_dump({"model": "hf", **settings}))
    options = ["--config", tmp_path / "harness.yaml", "--limit", "3"]
    assert command(options=options)[0] == 0
    (row,) = (record.to_row() for record in ResultsFolder(tmp_path / "lm_eval").records())
    assert row["task"] == "lm_eval:ulskip_sentences"
    assert (row["num_fewshot"], row["num_examples"]) == (1, 3)
    assert row["lm_eval_options"] == {"seed": [7, 7, 7, 7]}
