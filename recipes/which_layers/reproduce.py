"""Compare ways of choosing layers of two pretrained models at equal compute, with and without
patches, and prompts that pass only the first layers.

    python recipes/which_layers/reproduce.py --data PATH --coder FILE.gguf

PATH holds humaneval/ and cnn_dm/. SmolLM2-135M summarizes the first 100 words of 200 articles;
Qwen2.5-Coder-0.5B, FILE, solves 124 problems of HumanEval, whose last 40 calibrate, and summarizes
100 articles. All calibrations of a task have the same examples. Answers of HumanEval are code that
this recipe runs, with limits of time, memory and files. If it is interrupted, the same command
resumes. --only chooses tasks, --page writes the page of the stored rows alone, and --trial measures
a few short answers into runs/, to see that everything runs.
"""

import argparse
import gzip
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ulskip_cli.cli.progress_bars import SweepDisplay
from ulskip_cli.core.config import compose
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.ledger import Ledger, make_jobs
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep import run_jobs
from ulskip_cli.report import plots
from ulskip_cli.report.tables import markdown_table, provenance
from ulskip_cli.tasks.metrics import METRIC_OF, ScoredTexts

FOLDER = Path("results/which_layers")
TRIAL = Path("runs/which_layers_trial")
WORK = Path("runs/which_layers")  # data that this recipe writes
HELD_OUT = 40  # problems that calibrate
STATIC = ("unified", "top_skip", "bottom_skip")
CALIBRATED = ("block_influence", "one_block", "search", "lorp")
PATCH = ["correction=patch"]
METRICS = {"cnn_dm": "rouge1", "humaneval": "pass_at_1"}
RESAMPLES, SEED, LEVEL = 10_000, 0, 0.05  # of the bootstrap, and of the tests together
NAMES = {
    "unified": "unified",
    "top_skip": "top",
    "bottom_skip": "bottom",
    "block_influence": "block influence",
    "one_block": "one block",
    "search": "search",
    "lorp": "LoRP",
    "full": "full model",
}


class Case(NamedTuple):
    """A model on a task, the depths that are compared, and the prompts that are shortened."""

    title: str
    num_layers: int
    depths: tuple[int, int]  # layers of a decode step, the shallower last
    shallow_prompts: tuple[int, int]  # K of `first:K`: three quarters and half of the layers
    limit: int
    max_new_tokens: int


CASES = {
    "smollm2-news": Case("SmolLM2-135M, news", 30, (24, 20), (22, 15), 200, 96),
    "coder-code": Case("Qwen2.5-Coder-0.5B, code", 24, (22, 20), (18, 12), 124, 256),
    "coder-news": Case("Qwen2.5-Coder-0.5B, news", 24, (22, 20), (18, 12), 100, 96),
}


def keep(case: Case, count: int, strategy: str) -> list[str]:
    """Return the overrides with which a strategy keeps `count` layers; the ratio is rounded down,
    so that floor(N / ratio) is `count`.
    """
    ratio = math.floor(1e4 * case.num_layers / count) / 1e4
    return [f"strategy={strategy}", f"ratio={ratio}"]


def prompts(case: Case) -> list[str]:
    return [f"prompt_layers=first:{count}" for count in case.shallow_prompts]


def quality_points(case: Case, other_text: str) -> Iterator[list[str]]:
    """Yield the points whose answers are judged: all strategies at both depths, the calibrated ones
    also on text of another task, and prompts that pass fewer layers.
    """
    yield ["strategy=full"]
    for count in case.depths:
        for strategy in (*STATIC, *CALIBRATED):
            yield keep(case, count, strategy)
            yield keep(case, count, strategy) + PATCH
    shallow = case.depths[-1]
    for strategy in CALIBRATED:
        yield [*keep(case, shallow, strategy), other_text]
    for prompt in prompts(case):
        yield ["strategy=full", prompt]
        for strategy in ("unified", "one_block"):
            yield [*keep(case, shallow, strategy), *PATCH, prompt]


def speed_points(case: Case) -> Iterator[list[str]]:
    """Yield the points that are timed: equal numbers of layers in three ways, and prompts."""
    for count in case.depths:
        for strategy in STATIC:
            yield keep(case, count, strategy)
        yield keep(case, count, "unified") + PATCH
    for prompt in prompts(case):
        yield ["strategy=full", prompt]
        yield [*keep(case, case.depths[-1], "unified"), prompt]


def texts(data: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress((data / split).read_bytes()).splitlines()]


def prepare(data: Path) -> None:
    """Write the problems to evaluate and those that calibrate, and each text in the form of the
    other task.
    """
    problems = texts(data, "humaneval/HumanEval.jsonl.gz")
    articles = texts(data, "cnn_dm/train.jsonl.gz")[:HELD_OUT]
    held_out = problems[-HELD_OUT:]
    # The form of problems requires tests, but calibration runs none.
    never_run = {"test": "def check(answer): pass", "entry_point": "answer"}
    files = {
        "problems": problems[:-HELD_OUT],
        "held_out": held_out,
        "articles": articles,
        "news_as_problems": [
            {"prompt": row["article"][:1000], "canonical_solution": row["highlights"]} | never_run
            for row in articles
        ],
        "problems_as_news": [
            {
                "id": row["task_id"],
                "article": row["prompt"],
                "highlights": row["canonical_solution"],
            }
            for row in held_out
        ],
    }
    for name, rows in files.items():
        write_atomic(WORK / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def model(name: str, coder: str) -> list[str]:
    return (
        ["model=smollm2-135m"]
        if name.startswith("smollm2")
        else [
            f"model.path={coder}",
            "model.dtype=bfloat16",
        ]
    )


def task(name: str, data: Path) -> tuple[list[str], str]:
    """Return the overrides that choose a task with its held-out examples, and the one that
    calibrates on text of the other task instead.
    """
    if name.endswith("code"):
        words = ["task=humaneval", f"task.file={WORK}/problems.jsonl", "task.allow_code=true"]
        held_out, other = "held_out", "news_as_problems"
    else:
        words = ["task=cnn_dm", f"task.file={data}/cnn_dm/validation.jsonl.gz"]
        words.append("task.max_article_words=100")
        held_out, other = "articles", "problems_as_news"
    calibrate = [f"calibration.task={{file:{WORK}/{part}.jsonl}}" for part in (held_out, other)]
    return [*words, calibrate[0], f"calibration.examples={HELD_OUT}"], calibrate[1]


def measure(points: Sequence[list[str]], command: str) -> int:
    """Run the points that are not finished, in this process; return how many failed."""
    configs = [compose(words, command=command) for words in points]
    jobs = make_jobs(configs, command=command)
    with SweepDisplay(jobs) as display:
        ledger = Ledger(jobs)
        run_jobs(ledger, display)
    return len(ledger.outcome().failures)


def run(name: str, data: Path, coder: str, is_trial: bool) -> int:
    """Measure a case; return how many points failed."""
    case, folder = CASES[name], TRIAL if is_trial else FOLDER
    chosen, other_text = task(name, data)
    place = [f"results_dir={folder.parent}", f"name={folder.name}", *model(name, coder)]
    limits = [f"limit={case.limit}", f"max_new_tokens={case.max_new_tokens}"]
    timing = ["batch_size=1", "speed.prompt_tokens=600", "speed.new_tokens=32"]
    if is_trial:
        limits, chosen[-1] = ["limit=4", "max_new_tokens=8"], "calibration.examples=4"
        timing.append("speed.seconds=1")
    settings = [*place, *chosen, *limits, "batch_size=16", "speed.enabled=false"]
    points = [[*settings, *words] for words in quality_points(case, other_text)]
    if is_trial:
        points = [[*words, "strategy.budget=2"] if budgeted(words) else words for words in points]
    failed = measure(points, "run")
    if name != "coder-news":  # the model has been timed
        failed += measure([[*place, *timing, *words] for words in speed_points(case)], "bench")
    return failed


def budgeted(words: list[str]) -> bool:
    return bool({"strategy=search", "strategy=one_block"} & {*words})


class Scored(NamedTuple):
    """A row, its answers, and the score of each."""

    row: Record
    answers: list[str]
    scores: np.ndarray


def stored_scores(folder: Path) -> dict[str, Scored]:
    """Return the judged rows by id, and write every answer with its score: a line for each row.
    Rows without generations stay as they are stored, because generations are not committed.
    """
    results, file = ResultsFolder(folder), folder / "answers.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).splitlines() if file.exists() else []
    known = {entry["row"]: entry for entry in map(json.loads, lines)}
    rows = {row.id: row for row in results.records() if row.is_done and row.command == "run"}
    for row in rows.values():
        if row.id not in known and (answers := results.generations(row.id)):
            found = [answer["hypothesis"] for answer in answers]
            known[row.id] = {"row": row.id, "answers": found, "scores": judge(row, answers)}
    kept = [known[row_id] for row_id in rows if row_id in known]
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
    write_atomic(file, gzip.compress(text.encode(), mtime=0))
    return {
        entry["row"]: Scored(rows[entry["row"]], entry["answers"], np.array(entry["scores"]))
        for entry in kept
    }


def judge(row: Record, answers: Sequence[Mapping[str, str]]) -> list[float]:
    """Return the score of each answer of a row."""
    hypotheses, references, sources = (
        [answer[key] for answer in answers] for key in ("hypothesis", "reference", "source")
    )
    tests = [answer.get("test", "") for answer in answers]
    metric = METRICS[str(row.task)]
    scorer = METRIC_OF[metric].make(row.config.task.scoring())
    judged = ScoredTexts(hypotheses, references, sources, tests=tests)
    return [round(float(score), 4) for score in scorer.segments(hypotheses, judged)[metric]]


def of_case(name: str, scored: Mapping[str, Scored]) -> list[Scored]:
    case, task_name = CASES[name], "humaneval" if name.endswith("code") else "cnn_dm"
    return [
        entry
        for entry in scored.values()
        if entry.row.task == task_name and entry.row.num_layers == case.num_layers
    ]


class Cell(NamedTuple):
    """The settings in which rows of a case differ."""

    layers: int
    strategy: str
    patch: bool
    prompt: str
    other_text: bool

    @classmethod
    def of(cls, row: Record) -> "Cell":
        text = str((row.config.calibration.task or {}).get("file", ""))
        return cls(
            len(row.kept_layers or ()),
            row.strategy,
            row.correction is not None,
            row.prompt_layers,
            "_as_" in text,
        )

    @property
    def rival(self) -> "Cell":
        """Unified skipping at equal compute; with all layers, the full model."""
        strategy = "full" if self.strategy == "full" else "unified"
        prompt = "all" if self.strategy in (strategy, "full") else self.prompt
        return Cell(self.layers, strategy, self.patch, prompt, False)


def resampled(differences: np.ndarray) -> np.ndarray:
    """Return the mean of each bootstrap sample of differences [answers]."""
    count = len(differences)
    chosen = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
    return differences[chosen].mean(axis=1)


def share_text(scores: np.ndarray, full: np.ndarray) -> str:
    """Return the share of the full model's mean score with its 95% interval, by a paired bootstrap
    over answers.
    """
    count = len(full)
    chosen = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
    samples = scores[chosen].mean(axis=1) / full[chosen].mean(axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return f"{scores.mean() / full.mean():.0%} ({low:.0%} to {high:.0%})"


def starred(samples: Mapping[Cell, np.ndarray]) -> set[Cell]:
    """Return the cells whose difference from their rival is significant: the p-value of the paired
    bootstrap, corrected for the number of comparisons of the case (Holm 1979).
    """
    values = {}
    for cell, means in samples.items():
        tail = min((means <= 0).sum(), (means >= 0).sum())
        values[cell] = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    significant = set[Cell]()
    for rank, cell in enumerate(sorted(values, key=values.__getitem__)):
        if values[cell] * (len(values) - rank) > LEVEL:
            break
        significant.add(cell)
    return significant


HEADS = ("layers", "strategy", "patch", "prompt", "calibrated on")
HEADS += ("score", "score kept", "minus unified", "agreement", "times as fast")


def table(name: str, scored: Mapping[str, Scored], speeds: Sequence[Record]) -> str:
    """Return the table of a case. Its speedups are those of unified skipping with as many layers
    and the same correction, because equal numbers of layers cost the same.
    """
    cells = {Cell.of(entry.row): entry for entry in of_case(name, scored)}
    num_layers = CASES[name].num_layers
    timed = {Cell.of(row): row.speedup for row in speeds if row.num_layers == num_layers}
    full = cells[Cell(num_layers, "full", False, "all", False)]
    samples = {
        cell: resampled(entry.scores - cells[cell.rival].scores)
        for cell, entry in cells.items()
        if cell != cell.rival and cell.rival in cells
    }
    stars, lines = starred(samples), []
    order = list(NAMES)
    for cell in sorted(cells, key=lambda cell: (-cell.layers, *cell[2:], order.index(cell[1]))):
        entry, difference = cells[cell], "–"
        if cell in samples:
            low, high = np.quantile(samples[cell], [0.025, 0.975])
            delta = entry.scores.mean() - cells[cell.rival].scores.mean()
            star = "*" if cell in stars else ""
            difference = f"{delta:+.1f}{star} ({low:+.1f} to {high:+.1f})"
        agreement = entry.row.agreement
        speedup = timed.get(cell.rival._replace(prompt="all"))
        lines.append(
            (
                f"{cell.layers}/{entry.row.num_layers}",
                NAMES[cell.strategy],
                "yes" if cell.patch else "no",
                cell.prompt,
                "other text" if cell.other_text else "the task",
                f"{entry.scores.mean():.1f}",
                "100%" if entry is full else share_text(entry.scores, full.scores),
                difference,
                "–" if agreement is None else f"{agreement:.3f}",
                "1" if cell.strategy == "full" else speedup.text(".2f") if speedup else "–",
            )
        )
    return markdown_table(HEADS, lines, 5)


def shares(name: str, scored: Mapping[str, Scored]) -> dict[Cell, float]:
    """Return the share of the full model's score of the main cells, which read prompts with all
    layers and are calibrated on the task.
    """
    cells = {Cell.of(entry.row): float(entry.scores.mean()) for entry in of_case(name, scored)}
    full = cells.get(Cell(CASES[name].num_layers, "full", False, "all", False))
    if not full:
        return {}
    return {
        cell: score / full
        for cell, score in cells.items()
        if cell.prompt == "all" and not cell.other_text and cell.strategy != "full"
    }


def answer(scored: Mapping[str, Scored], speeds: Sequence[Record]) -> list[str]:
    """Return the result in three lines: which layers, with or without a patch, at what cost."""
    by_choice: dict[tuple[str, bool], list[float]] = {}
    for name in CASES:
        for cell, share in shares(name, scored).items():
            by_choice.setdefault((cell.strategy, cell.patch), []).append(share)
    averages = {choice: mean(values) for choice, values in by_choice.items()}
    lines = []
    for patch, title in ((True, "With a patch"), (False, "Without one")):
        ranked = sorted(
            (choice for choice in averages if choice[1] == patch),
            key=averages.__getitem__,
            reverse=True,
        )
        texts_ = [f"{NAMES[strategy]} {averages[strategy, patch]:.0%}" for strategy, _ in ranked]
        lines.append(f"- **{title}**, mean share of the full model's score: {', '.join(texts_)}.")
    costs = [
        f"{len(row.kept_layers or ())} of {row.num_layers} layers"
        f"{' with a patch' if row.correction else ''} {row.measured_speedup:.2f}x"
        for row in speeds
        if row.strategy == "unified" and row.prompt_layers == "all" and row.measured_speedup
    ]
    lines.append(f"- **Speed** of a decode step, unified: {', '.join(costs)}.")
    return lines


def speed_table(rows: Sequence[Record]) -> str:
    heads = ("model", "layers", "strategy", "patch", "prompt", "speedup", "time to first token, s")
    lines = []
    for row in rows:
        first = row.time_to_first_token_seconds
        lines.append(
            (
                row.model,
                f"{len(row.kept_layers or ())}/{row.num_layers}",
                NAMES[row.strategy],
                "yes" if row.correction else "no",
                row.prompt_layers,
                row.speedup.text(".2f") if row.speedup else "–",
                "–" if first is None else f"{first:.3f}",
            )
        )
    return markdown_table(heads, lines, 5)


def plot(scored: Mapping[str, Scored], file: Path) -> None:
    """Plot the share of quality over the layers: a panel for each measured case, solid with
    patches.
    """
    with plots.applied():
        measured = [name for name in CASES if shares(name, scored)]
        figure = Figure(figsize=(3.2 * max(2, len(measured)), 4.2), layout="constrained")
        panels = figure.subplots(1, len(measured), squeeze=False)[0]
        for axes, name in zip(panels, measured, strict=True):
            case, cells = CASES[name], shares(name, scored)
            axes.set_title(case.title)
            axes.axhline(1, color=plots.FAINT, linewidth=1)
            for strategy, label in NAMES.items():
                for patch in (True, False):
                    points = sorted(
                        (cell.layers, share)
                        for cell, share in cells.items()
                        if (cell.strategy, cell.patch) == (strategy, patch)
                    )
                    if points:
                        axes.plot(
                            *zip(*points, strict=True),
                            color=plots.strategy_colour(strategy),
                            linestyle="-" if patch else "--",
                            marker="o",
                            label=label if patch else None,
                        )
            axes.invert_xaxis()  # fewer layers to the right
            axes.set(xlabel=f"layers of a decode step, of {case.num_layers}")
            axes.set_xticks(case.depths)
        figure.axes[0].set_ylabel("share of the full model's score")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        plots.save_figure(figure, file)


NOTE = (
    "Greedy answers; the score is ROUGE-1 of news, and the share of HumanEval's functions whose"
    " tests pass. Minus unified: the difference from unified skipping with as many layers, the same"
    " correction and the same prompt, or from the full model, with its 95% interval by the paired"
    " bootstrap (score kept has one too); \\* marks differences that are significant after Holm's"
    " correction for the number of comparisons in a table. With `first:K`, prompts pass K layers."
    " Calibrated on: the examples"
    " that chose layers and fitted patches; other text is code for news and news for code. Times as"
    " fast: the speedup of a decode step of unified skipping in the table of speeds. Solid"
    " lines of the plot have patches. `recipes/which_layers/reproduce.py` writes this page,"
    " `answers.jsonl.gz` has every answer with its score."
)


def page(folder: Path, scored: Mapping[str, Scored]) -> str:
    """Return the page of all rows."""
    rows = [row for row in ResultsFolder(folder).records() if row.is_done]
    speeds = [row for row in rows if row.command == "bench"]
    parts = ["# Which layers?", "\n".join(answer(scored, speeds)), "![Quality](quality.svg)"]
    for name, case in CASES.items():
        if entries := of_case(name, scored):
            parts += [
                f"## {case.title} · {len(entries[0].scores)} examples",
                table(name, scored, speeds),
            ]
    parts += ["## Speed · batch 1, 600 tokens of prompt", speed_table(speeds), NOTE]
    return "\n\n".join([*parts, provenance(rows)]) + "\n"


def write_page(folder: Path) -> None:
    """Write the answers, the plot and the page."""
    scored = stored_scores(folder)
    plot(scored, folder / "quality")
    write_atomic(folder / "README.md", page(folder, scored))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coder", help="folder, GGUF file or hub id of Qwen2.5-Coder-0.5B")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--trial", action="store_true", help="few short answers, into runs/")
    args = parser.parse_args()
    folder, failed = TRIAL if args.trial else FOLDER, 0
    if not args.page:
        if args.coder is None or args.data is None:
            parser.error("expected --coder MODEL and --data PATH, or --page")
        prepare(args.data)
        for name in args.only:
            failed += run(name, args.data, args.coder, args.trial)
            write_page(folder)
    write_page(folder)
    if failed:
        sys.exit(f"{failed} points failed; the same command runs them again")


if __name__ == "__main__":
    main()
