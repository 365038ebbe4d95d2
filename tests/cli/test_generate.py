"""`ulskip generate`: both answers, their speeds, and the first difference."""

import io
import json
import sys

import pytest
from rich.console import Console

from ulskip_cli.cli import generate_command as command
from ulskip_cli.core.config import compose_prompts
from ulskip_cli.experiments.comparison import GrowingText

FEW = ["max_new_tokens=4"]


@pytest.fixture
def model(model_folder):
    return [f"model.path={model_folder}", "model.dtype=float32", *FEW]


def test_a_pipe_gets_both_answers_as_plain_text(ulskip, model):
    code, out, err = ulskip("generate", "the cat = the mat?", "ratio=2", *model)
    assert code == 0, err
    note, full, kept, summary = out.strip().split("\n\n")
    note, warning = note.split("\n", 1)
    assert note.endswith("prompt as given") and "not trained for skipping" in warning
    assert full.startswith("full model, 6 layers:\n")
    assert kept.startswith("unified, 3 of 6 layers:\n")
    assert summary.startswith("full model ") and summary.count(" tokens;") == 2
    assert "\x1b" not in out


def test_the_bundled_translator_gets_its_prompt(ulskip):
    code, out, err = ulskip("generate", "Ich habe Hunger.", "ratio=2")
    assert "warning" not in out
    assert code == 0, err
    assert "Ich habe Hunger. Translate German to English:" in out
    assert out.count("I'm hungry.") == 2 and "the answers are equal" in out


def test_json_is_the_last_line(ulskip, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    out = ulskip("generate", "-", "ratio=3", "strategy=top_skip", "--json", *model)[1]
    told = json.loads(out.splitlines()[-1])
    expected = {"prompt": "the cat", "kept_layers": [0, 1], "layers": "2 of 6 layers"}
    assert told.items() >= expected.items()
    for side in (told["full"], told["kept"]):
        assert side["num_tokens"] == len(side["token_ids"]) > 0
        assert side["tokens_per_second"] is None or side["tokens_per_second"] > 0
    ids = [told[side]["token_ids"] for side in ("full", "kept")]
    at = told["first_difference"]["token"]
    assert ids[0][:at] == ids[1][:at] and ids[0][at:] != ids[1][at:]


@pytest.mark.parametrize(
    "words",
    [
        ["engine=transformers"],
        ["decoding=self_speculative"],
        ["decoding=prompt_lookup"],
        ["decoding=sample"],
        ["strategy=early_exit", "strategy.threshold=0.5"],
        ["strategy=full"],
        ["engine=llama_cpp", "ratio=1"],
        ["task=wmt", "correction=patch", "calibration.examples=2"],
    ],
    ids=" ".join,
)
def test_engines_decodings_and_corrections_work(ulskip, model, words, tmp_path):
    if "engine=llama_cpp" in words:
        pytest.importorskip("llama_cpp")
    code, out, err = ulskip("generate", "the cat", f"results_dir={tmp_path}", *words, *model)
    assert code == 0, err
    assert "\nfull model, 6 layers:\n" in out and " tokens; speeds are shown from 16" in out
    assert not list(tmp_path.glob("*/runs.jsonl"))  # no row is stored


def test_prompts_of_a_file_are_answered_one_after_another(ulskip, model, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the cat\n\nder Hund\n")
    words = ["task=jsonl", f"task.file={file}", "ratio=2", *model]
    out = ulskip("generate", *words)[1]
    assert out.index("\nthe cat\n") < out.index("\nder Hund\n")
    rows = json.loads(ulskip("generate", *words, "--json")[1].splitlines()[-1])["rows"]
    assert [row["prompt"] for row in rows] == ["the cat", "der Hund"]


def test_a_terminal_keeps_the_answers_and_the_summary(ulskip, model, monkeypatch):
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    monkeypatch.setattr(command, "make_console", lambda: console)
    words = ["strategy=early_exit", "strategy.threshold=0.5", *model]
    assert ulskip("generate", "the cat", *words)[0] == 0
    shown = console.file.getvalue()
    assert "full model, 6 layers" in shown and "early_exit" in shown
    assert "of 6 layers" in " ".join(shown.split()[-20:])


@pytest.mark.parametrize("decoding", ["greedy", "self_speculative"])
def test_texts_are_told_in_pieces_while_they_are_generated(model, decoding):
    from ulskip_cli.experiments.comparison import PromptComparer
    from ulskip_cli.experiments.point import resolve_prompts
    from ulskip_cli.experiments.runner import Models

    config = compose_prompts([*model, f"decoding={decoding}", "max_new_tokens=24"])
    comparer, told = PromptComparer(resolve_prompts(config, "the cat"), Models()), []
    comparison = comparer.compare(0, lambda side, piece: told.append((side, piece)))
    assert comparison.summary().count("tok/s") == 2
    assert [side for side, _ in told] == sorted(side for side, _ in told)
    for side, answer in enumerate((comparison.full, comparison.kept)):
        pieces = [piece for teller, piece in told if teller == side]
        assert "".join(pieces) == answer.text.strip()
        assert sum(map(bool, pieces)) > 2


def test_a_piece_ends_with_a_whole_character():
    class Bytes:
        """A tokenizer whose tokens are the bytes of a text."""

        def decode(self, token_ids, skip_special_tokens):
            return bytes(token_ids).decode("utf-8", errors="replace")

    text, token_ids = GrowingText(Bytes(), []), list(" \u00e4 b\n".encode())
    pieces = [text.piece(token_ids[:count]) for count in range(1, len(token_ids))]
    assert [*pieces, text.piece(token_ids, is_last=True)] == ["", "", "\u00e4", "", " b", ""]


def test_the_task_of_a_prompt_follows_from_the_model(model_folder):
    assert compose_prompts([]).task.name == "wmt"
    assert compose_prompts([f"model.path={model_folder}"]).task.name == "jsonl"
    assert compose_prompts([f"model.path={model_folder}", "task.pair=en-de"]).task.name == "wmt"
    assert compose_prompts([f"model.path={model_folder}", "task.split=a"]).task.name == "jsonl"
    assert compose_prompts(["model=smollm2-135m"]).model.name == "smollm2-135m"
