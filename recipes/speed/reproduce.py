"""Compare the speed of transformers, ulskip and llama.cpp, and say which answers are the same.

    python recipes/speed/reproduce.py --data PATH --coder FILE.gguf

Three models answer their tasks: the bundled one, SmolLM2-135M (news of PATH/cnn_dm) and
Qwen2.5-Coder-0.5B-Instruct (--coder; problems of PATH/humaneval, whose answers are run as code,
with limits of time, memory and files). Every row is timed in turns with all layers in transformers.
It takes about half an hour on two cores, which should be idle otherwise. If it is
interrupted, the same command resumes. The page goes to results/speed/README.md, and the first table
of the project's README to headline.md beside it.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import bands

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import TITLES
from ulskip_cli.report.columns import decode_rate, layers
from ulskip_cli.report.rows import collected
from ulskip_cli.report.tables import markdown_table, provenance, title

FOLDER = Path(__file__).parents[2] / "results" / "speed"
OTHERS = "engine=transformers,llama_cpp,llama_cpp_q8_0,llama_cpp_q4_0"
BATCHES = "batch_size=1,8"
SHORT, LONG = "speed.seconds=10", "speed.seconds=60"  # LONG for the rows that README begins with
GRIDS = (
    ["strategy=full", OTHERS, BATCHES, SHORT],
    ["strategy=full", "engine=torch", "batch_size=1", LONG],
    ["strategy=full", "engine=torch", "batch_size=8", SHORT],
    ["engine=torch", "decoding=prompt_lookup,self_speculative", "batch_size=1", SHORT],
    ["strategy=unified", "engine=torch", "ratio=1.3333,2", BATCHES, SHORT],
)
COMMON = ("name=speed", "results_dir=results", "answers=true", "baseline_engine=transformers")
# in the order of `models`
NAMES = ("the bundled translator (11M)", "SmolLM2-135M", "Qwen2.5-Coder-0.5B Q4_K_M")
HEADS = ("batch", "decoded by", "layers", "tokens/s", "times as fast", "with the prompt")
HEADS += ("same answers",)
HEADLINE = ("model", "with drafts", "without", "with the prompt", "batch 8", "same answers")
HEADLINE += ("llama.cpp", "llama.cpp in 4 bits")
NOTE = (
    "Greedy decoding. Batch: prompts that are answered at once. torch is the engine of ulskip, and"
    " ngram its look-ups, which copy drafts from earlier text; 4bit also drafts with weights in 4"
    " bits. Times as fast: decode seconds of"
    " all layers in transformers over those of the row, in timed pairs, with the 95% interval; with"
    " the prompt: the same with the seconds of reading it."
    " Same answers: those whose tokens are the ones of all layers in transformers; in bfloat16,"
    " rounding decides between tokens that are nearly equally likely. Skipped layers have no"
    " correction here: other pages say what quality corrected layers keep."
    " `recipes/speed/reproduce.py` writes this page."
)


def models(data: Path, coder: Path) -> list[list[str]]:
    """Return the overrides that choose each model with its task."""
    news = f"task.file={data}/cnn_dm/validation.jsonl.gz"
    problems = f"task.file={data}/humaneval/HumanEval.jsonl.gz"
    code = ["task=humaneval", problems, "task.allow_code=true", "max_new_tokens=128", "limit=12"]
    return [
        ["task=wmt"],
        [
            *("model=smollm2-135m", "task=cnn_dm", news, "task.max_article_words=100"),
            *("max_new_tokens=64", "limit=24"),
        ],
        [f"model.path={coder}", "model.dtype=bfloat16", *code],
    ]


def decoded_by(row: Record) -> str:
    """Name the engine of a row, the format of its weights and its drafts."""
    if row.draft_tokens:
        return f"torch, {row.config.decoding.draft}"
    return row.decoded_by


class Answers:
    """The rows of a folder beside the answers of all layers in transformers."""

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder
        self.rows = [row for row in folder.records() if row.is_done]

    def transformers(self, row: Record, batch_size: int) -> Record:
        """Return the row of all layers of the same model in transformers."""
        wanted = (row.model, batch_size, "transformers")
        (full,) = (
            other for other in self.rows if (other.model, other.batch_size, other.engine) == wanted
        )
        return full

    def same(self, row: Record, other: Record) -> str:
        """Count the answers whose tokens are the same."""
        equal = [a == b for a, b in zip(self.tokens(row), self.tokens(other), strict=True)]
        return f"{sum(equal)} of {len(equal)}"

    def tokens(self, row: Record) -> list[list[int]]:
        """Return the tokens of the answers of a row."""
        return [answer["token_ids"] for answer in self.folder.generations(row.id)]

    def line(self, row: Record) -> list[str]:
        """Return the cells of a row in the table of its model."""
        speedups = [row.speedup, row.with_prompt]
        return [
            str(row.batch_size),
            decoded_by(row),
            layers(row) or "",
            f"{decode_rate(row):.0f}",
            *("–" if speedup is None else speedup.text(".2f") for speedup in speedups),
            self.same(row, self.transformers(row, row.batch_size)),
            f"{row.value(row.primary):.1f}",
        ]

    def page(self) -> str:
        """Return the page: a table for each model."""
        parts = ["# How fast is each engine beside transformers?", NOTE]
        for rows in collected(self.rows, lambda row: row.model).values():
            rows.sort(key=lambda row: row.batch_size)
            heads = [*HEADS, TITLES[str(rows[0].primary)]]
            table = markdown_table(heads, map(self.line, rows), 2)
            parts += [f"## {title(rows)}", table, self.batches(rows[0]), provenance(rows)]
        return "\n\n".join(parts) + "\n"

    def batches(self, row: Record) -> str:
        """Say how many answers of transformers do not depend on its own batch size, in the model of
        a row.
        """
        one, eight = (self.transformers(row, size) for size in (1, 8))
        return f"transformers alone gives {self.same(eight, one)} the same at batch sizes 1 and 8."

    def headline(self) -> str:
        """Return the table that README begins with: a line for each model, the largest first."""
        rows = sorted(self.rows, key=lambda row: row.batch_size)
        models = collected(rows, lambda row: row.model).values()
        lines = list(map(self.headline_cells, NAMES, models))
        table = markdown_table(HEADLINE, lines[::-1], 1)
        return f"{table}\n\n{provenance(self.rows)}\n"

    def headline_cells(self, name: str, rows: list[Record]) -> list[str]:
        """Say how many times as fast as transformers one model is with all layers, in ulskip and in
        llama.cpp with weights of the same type and of 4 bits.
        """
        (drafts,) = (row for row in rows if decoded_by(row) == "torch, 4bit")
        full, full_of_8 = (row for row in rows if row.keeps_all and decoded_by(row) == "torch")
        llama_cpp, _ = (row for row in rows if row.engine_weights in ("f32", "bf16"))
        smaller, _ = (row for row in rows if row.engine_weights == "q4_0")
        return [
            f"{name} as {full.dtype}",
            *(bands.shown(row, ".1f").replace(" ", "x ", 1) for row in (drafts, full)),
            f"{full.end_to_end_speedup:.1f}x",
            f"{full_of_8.end_to_end_speedup:.1f}x",
            self.same(full, self.transformers(full, 1)),
            *(f"{row.measured_speedup:.1f}x" for row in (llama_cpp, smaller)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of cnn_dm and humaneval")
    parser.add_argument("--coder", type=Path, required=True, help="GGUF file of the coder")
    args = parser.parse_args()
    for model in models(args.data, args.coder):
        for grid in GRIDS:
            words = ["sweep", *COMMON, *model, *grid]
            print("ulskip", *words, flush=True)
            if code := invoke(words):
                sys.exit(code)
    answers = Answers(ResultsFolder(FOLDER))
    write_atomic(FOLDER / "README.md", answers.page())
    write_atomic(FOLDER / "headline.md", answers.headline())


if __name__ == "__main__":
    main()
