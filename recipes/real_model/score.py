"""Compute the scores of a results folder again from its stored answers, without ulskip, with the
shares of the full model and the 95% intervals of their paired bootstrap.

    python recipes/real_model/score.py --data PATH [--results results/skip_adapters]

It runs the code of HumanEval's answers, each in a process with limits of time and memory.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

RESAMPLES, SEED = 2_000, 0  # of the bootstrap
SECONDS, MEMORY = 5, 2**31  # limits of an answer's process; bytes
PASSED = 42  # not the code of an answer that calls exit()


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def passes(problem: dict, answer: str) -> bool:
    """Run the tests of a problem of HumanEval on an answer, and return True if they pass."""
    # The prompt is a function with a docstring alone, so it is valid code, and an answer can
    # continue the function or define it again.
    program = "\n".join([problem["prompt"], answer, problem["test"]])
    program += f"\ncheck({problem['entry_point']})\nimport os\nos._exit({PASSED})\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [sys.executable, "-I", "-c", program]
            run = subprocess.run(
                command, cwd=folder, capture_output=True, timeout=SECONDS, preexec_fn=limit
            )
        except subprocess.TimeoutExpired:
            return False
    return run.returncode == PASSED


def scores(task: str, answers: list[str], data: Path) -> np.ndarray:
    """Return the score of each answer, in percent. The answers are to the first examples of the
    data.
    """
    if task == "humaneval":
        problems = lines(data / "humaneval/HumanEval.jsonl.gz")
        shares = [
            passes(problem, answer) for problem, answer in zip(problems, answers, strict=False)
        ]
    else:
        scorer = RougeScorer(["rouge1"], use_stemmer=True)
        articles = lines(data / "cnn_dm/validation.jsonl.gz")
        shares = [
            scorer.score(article["highlights"], answer)["rouge1"].fmeasure
            for article, answer in zip(articles, answers, strict=False)
        ]
    return 100 * np.array(shares, dtype=float)


def score_of(task: str, answers: list[str], data: Path) -> Callable[[np.ndarray], float]:
    """Return a function that scores a resample of the answers, in percent: its argument has the
    indices of the answers, with repetitions. BLEU is no mean of scores, so it is computed anew.
    """
    if task != "wmt":
        score_of_each = scores(task, answers, data)
        return lambda chosen: score_of_each[chosen].mean()
    english = (data / "wmt22/newstest2022.de-en.en").read_text("utf-8").splitlines()
    return lambda chosen: (
        corpus_bleu([answers[i] for i in chosen], [[english[i] for i in chosen]]).score
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("results/real_model"))
    args = parser.parse_args()
    stored = {entry["row"]: entry["answers"] for entry in lines(args.results / "answers.jsonl.gz")}
    all_rows = map(json.loads, (args.results / "runs.jsonl").read_text().splitlines())
    rows = [row for row in all_rows if row["status"] == "done"]
    score_by_id = {
        row["id"]: score_of(row["config"]["task"]["name"], stored[row["id"]], args.data)
        for row in rows
    }
    for row in rows:
        score, count = score_by_id[row["id"]], len(stored[row["id"]])
        value, text = score(np.arange(count)), ""
        if full_score := score_by_id.get(row.get("baseline_id")):
            # The same examples for both models in each resample.
            resamples = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
            shares = [score(chosen) / full_score(chosen) for chosen in resamples]
            low, high = np.quantile(shares, [0.025, 0.975])
            share = value / full_score(np.arange(count))
            text = f", {share:.1%} of full ({low:.1%} to {high:.1%})"
        print(f"{row['id']} {len(row['kept_layers'])}/{row['num_layers']}: {value:.1f}{text}")


if __name__ == "__main__":
    main()
