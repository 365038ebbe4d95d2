"""Measure what skipping layers keeps of a model's answers: code, news, translations.

    python recipes/real_model/reproduce.py --model FILE.gguf --data PATH

The model is a folder, a GGUF file or a hub id with 24 layers, such as Qwen2.5-Coder-0.5B-Instruct,
for which the layers of SKIPPED were chosen; it runs in bfloat16. PATH holds humaneval/, cnn_dm/ and
wmt22/. Answers of HumanEval are code that this recipe runs, with limits of time, memory and files.
Patches learn from the last 40 problems and sentences, which are not evaluated. On two cores, a row
of HumanEval takes five minutes, one of news three, and everything about an hour and a half.
If it is interrupted, the same command resumes; --only chooses tasks, and --page writes the page of
the stored rows alone. score.py computes the shares again from the stored answers. An adapter that
adapter.py has trained before is measured too.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from ulskip_cli.cli.progress_bars import SweepDisplay
from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import ADAPTER_FILE
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.ledger import Ledger, make_jobs
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep import run_jobs
from ulskip_cli.report.columns import layers
from ulskip_cli.report.tables import markdown_table, provenance

FOLDER = Path("results/real_model")
WORK = Path("runs/real_model")  # data that this recipe writes, and adapters
LAYERS = 24  # of the model
HELD_OUT, PATCH_EXAMPLES = 40, 16  # examples that are not evaluated, and those that fit patches
SKIPPED = {22: range(3, 5), 20: range(3, 7), 12: range(3, 15)}  # by the number of kept layers
FULL = ["strategy=full"]
SMALLER = ["model=smollm2-135m", *FULL]  # a smaller model with all layers, to compare with
KEPT = ["prompt_layers=kept"]
PATCH = ["correction=patch", f"calibration.examples={PATCH_EXAMPLES}"]
Q8, Q4 = (
    [f"engine={engine}", "baseline_engine=torch"] for engine in ("llama_cpp_q8_0", "llama_cpp_q4_0")
)


def keep(count: int) -> list[str]:
    """Return the overrides that keep `count` layers."""
    kept = [layer for layer in range(LAYERS) if layer not in SKIPPED[count]]
    return ["strategy=custom", f"strategy.layers={json.dumps(kept, separators=(',', ':'))}"]


# News in the form of problems, and the number of words of an article.
OTHER_TEXT, OTHER_WORDS = WORK / "news_as_problems.jsonl", 150
POINTS = {
    "humaneval": [
        FULL,
        keep(22),
        keep(22) + PATCH,
        keep(20) + PATCH,
        keep(12) + PATCH,
        keep(22) + KEPT,
        keep(20),
        [*keep(20), *PATCH, f"calibration.task={{file:{OTHER_TEXT}}}"],
        FULL + Q4,
        FULL + Q8,
        SMALLER,
    ],
    "cnn_dm": [FULL, keep(22), keep(20), keep(20) + PATCH, keep(22) + KEPT, SMALLER],
    "wmt": [FULL, keep(22), keep(20) + PATCH, keep(22) + KEPT],
}
EXAMPLES = {"humaneval": 124, "cnn_dm": 100, "wmt": 200}
METRICS = {
    "humaneval": "pass_at_1",
    "cnn_dm": "rouge1",
    "wmt": "bleu",
}
TITLES = {
    "humaneval": "HumanEval: functions whose tests pass",
    "cnn_dm": "CNN/DM: news summarized, ROUGE-1",
    "wmt": "German to English, newstest2022: BLEU",
}
HEADS = ("layers", "strategy", "correction", "prompt", "engine", "score", "of full", "agreement")


def adapters() -> list[list[str]]:
    """Return the points of the adapters that adapter.py has trained."""
    return [
        [*keep(count), "correction=adapter", f"correction.path={folder}"]
        for count in SKIPPED
        if ((folder := WORK / f"adapter-{count}") / ADAPTER_FILE).is_file()
    ]


def measure(points: list[list[str]]) -> None:
    """Run the points, each a list of overrides, that are not finished, in this process, which loads
    the model once; then write the page, and exit if a point failed.
    """
    jobs = make_jobs([compose(words, command="run") for words in points])
    with SweepDisplay(jobs) as display:
        ledger = Ledger(jobs)
        run_jobs(ledger, display)
    write_page()
    if failures := ledger.outcome().failures:
        sys.exit(f"{len(failures)} points failed; the same command runs them again")


def split(content: bytes, suffix: str) -> None:
    """Write the lines that are evaluated into WORK/problemsSUFFIX, and the last HELD_OUT ones into
    WORK/held_outSUFFIX, for patches and adapters.
    """
    lines = content.splitlines(keepends=True)
    write_atomic(WORK / f"problems{suffix}", b"".join(lines[:-HELD_OUT]))
    write_atomic(WORK / f"held_out{suffix}", b"".join(lines[-HELD_OUT:]))


def prepare(data: Path) -> None:
    """Write the problems and sentences to evaluate, and the texts that patches learn from."""
    WORK.mkdir(parents=True, exist_ok=True)
    split(gzip.decompress((data / "humaneval/HumanEval.jsonl.gz").read_bytes()), ".jsonl")
    for language in (".de", ".en"):
        split((data / f"wmt22/newstest2022.de-en{language}").read_bytes(), language)
    news = gzip.decompress((data / "cnn_dm/train.jsonl.gz").read_bytes()).splitlines()
    # The form of problems requires tests, but calibration runs none.
    problems, never_run = [], {"test": "def check(answer): pass", "entry_point": "answer"}
    for article in map(json.loads, news[:PATCH_EXAMPLES]):
        words = " ".join(article["article"].split()[:OTHER_WORDS])
        texts = {"prompt": words, "canonical_solution": article["highlights"]}
        problems.append(texts | never_run)
    write_atomic(OTHER_TEXT, "".join(json.dumps(problem) + "\n" for problem in problems))


def task(name: str, data: Path) -> list[str]:
    """Return the overrides that choose a task, with its held-out examples."""
    if name == "humaneval":
        words = [f"task.file={WORK}/problems.jsonl", "task.allow_code=true"]
        held_out, length = f"file:{WORK}/held_out.jsonl", 256
    elif name == "wmt":
        words = [f"task.source_file={WORK}/problems.de", f"task.reference_file={WORK}/problems.en"]
        words.append("task.dataset=files")
        held_out = f"source_file:{WORK}/held_out.de,reference_file:{WORK}/held_out.en"
        length = 96
    else:
        words = [f"task.file={data}/cnn_dm/validation.jsonl.gz", "task.max_article_words=250"]
        held_out, length = f"file:{data}/cnn_dm/train.jsonl.gz", 96
    calibration = f"calibration.task={{{held_out}}}"
    limits = [f"limit={EXAMPLES[name]}", f"max_new_tokens={length}"]
    return [f"task={name}", *words, *limits, calibration]


def correction(row: Record) -> str:
    """Say what corrects the skipped layers, and from how many examples of which text it learned."""
    if row.correction is None:
        return "none"
    config = row.config
    if not config.correction.is_fitted:
        return f"adapter, {row.correction.training['examples']} examples"
    other = (config.calibration.task or {}).get("file") == str(OTHER_TEXT)
    return f"patch, {config.calibration.examples} {'articles' if other else 'examples'}"


def share(row: Record, metric: str, full: Record) -> str:
    """Return the score as a share of the full model's, with its interval; that of a smaller model
    has none.
    """
    compared = row.vs_baseline.get(metric)
    if compared is None:  # the full model itself, or a smaller one
        is_full = row.model == full.model
        return "100.0%" if is_full else f"{row.value(metric) / full.value(metric):.1%}"
    changes = compared.delta, compared.delta_low, compared.delta_high
    value, low, high = (f"{max(0.0, 1 + change / compared.full):.1%}" for change in changes)
    return f"{value} ({low} to {high})"


def line(row: Record, metric: str, full: Record) -> tuple[str, ...]:
    """Return the cells of a row in the table of its task."""
    agreement = "–" if row.baseline_id or row.model != full.model else "1"
    if row.agreement is not None:
        agreement = f"{row.agreement:.3f} ({row.agreement_low:.3f} to {row.agreement_high:.3f})"
    return (
        layers(row) or "",
        row.strategy if row.model == full.model else row.model,
        correction(row),
        row.prompt_layers,
        f"{row.engine} {row.engine_weights or ''}".strip(),
        f"{row.value(metric):.1f}",
        share(row, metric, full),
        agreement,
    )


def order(row: Record) -> tuple[bool, float, str, str]:
    """Return the sort key of a row: by layers, most first, then by engine and correction; a smaller
    model is last.
    """
    correction = row.correction.name if row.correction else ""
    return (row.num_layers != LAYERS, -(row.mean_kept_layers or 0), row.engine or "", correction)


def page(rows: list[Record]) -> str:
    """Return the page of all rows, a table for each task."""
    parts = ["# What skipping layers keeps of right answers"]
    for name, title in TITLES.items():
        of_task = sorted((row for row in rows if row.task == name), key=order)
        if not of_task:
            continue
        full = next(row for row in of_task if row.baseline_id is None)
        # once: all layers are measured again as the baseline of another engine
        lines = dict.fromkeys(line(row, METRICS[name], full) for row in of_task)
        parts += [f"## {title} · {full.num_examples} examples", markdown_table(HEADS, lines, 5)]
    peak = max(row.peak_memory_bytes or 0 for row in rows) / 1e9
    note = f"{NOTE} Generating took at most {peak:.1f} GB of memory."
    return "\n\n".join([*parts, note, provenance(rows)]) + "\n"


NOTE = (
    "Greedy answers. Of full: the score as a share of that with all layers, with the 95% interval"
    " of the paired bootstrap. Agreement: the share of positions in the full model's own answers at"
    " which the most likely token is the full model's, with its 95% interval. Prompt: all means"
    " that every layer reads the prompt, kept that only the kept layers do. Patches were fitted on"
    " held-out examples of the same task, or on articles of news, and adapters trained by"
    " adapter.py. The layers of custom were chosen on news and on some of the problems. Layers:"
    " their mean number while decoding. `answers.jsonl.gz` has every answer."
)


def write_page() -> None:
    """Write the page, and every answer: a line for each row. Answers without generations stay as
    they are stored, because generations are not committed.
    """
    results, file = ResultsFolder(FOLDER), FOLDER / "answers.jsonl.gz"
    rows = [row for row in results.records() if row.is_done]
    lines = gzip.decompress(file.read_bytes()).splitlines() if file.exists() else []
    stored = {entry["row"]: entry for entry in map(json.loads, lines)}
    for row in rows:
        if found := results.generations(row.id):
            texts = [answer["hypothesis"] for answer in found]
            stored[row.id] = {"row": row.id, "task": row.task, "answers": texts}
    text = "".join(json.dumps(stored[row.id], ensure_ascii=False) + "\n" for row in rows)
    write_atomic(file, gzip.compress(text.encode(), mtime=0))
    write_atomic(FOLDER / "README.md", page(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder, GGUF file or hub id")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=POINTS, default=[*POINTS])
    parser.add_argument("--page", action="store_true", help="write the page alone")
    args = parser.parse_args()
    if not args.page:
        if args.model is None or args.data is None:
            parser.error("expected --model MODEL and --data PATH, or --page")
        prepare(args.data)
        common = ["model.dtype=bfloat16", f"name={FOLDER.name}", "batch_size=16"]
        for name in args.only:
            points = POINTS[name] + (adapters() if name == "humaneval" else [])
            settings = [*common, "speed.enabled=false", *task(name, args.data)]
            # SMALLER names a model itself.
            models = [[] if point is SMALLER else [f"model.path={args.model}"] for point in points]
            pairs = zip(models, points, strict=True)
            measure([[*settings, *model, *point] for model, point in pairs])
    write_page()


if __name__ == "__main__":
    main()
