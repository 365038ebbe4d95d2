"""Translation: sentences, references, BLEU and chrF."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulskip_cli.errors import RunError, UsageError, one_of, unknown
from ulskip_cli.metrics import translation
from ulskip_cli.metrics.scores import Scores
from ulskip_cli.tasks.examples import Example
from ulskip_cli.tasks.template import Template
from ulskip_cli.tasks.textfile import read_text

LANGUAGES = {"de": "German", "en": "English"}
PAIRS = ("de-en", "en-de")
SAMPLE = Path(__file__).parent.parent / "assets" / "wmt_sample"


@dataclass(frozen=True)
class Wmt:
    """One language pair of one test set.

    Attributes:
        pair: source and target language, `de-en` or `en-de`.
        dataset: `sample` (bundled), `files`, or a test set that sacrebleu downloads by name (`wmt22`).
        source_file: with `files`, one sentence a line, plain or gzipped.
        reference_file: with `files`, as many lines.
        prompt: template of what the model reads.
        response: template of what it should write.
    """

    pair: str = "de-en"
    dataset: str = "sample"
    source_file: str | None = None
    reference_file: str | None = None
    prompt: str = ""
    response: str = ""

    def __post_init__(self) -> None:
        """Refuse an unknown pair, and files without their paths."""
        one_of("task.pair", self.pair, PAIRS)
        given = [self.source_file, self.reference_file]
        if self.dataset == "files" and None in given:
            raise UsageError("task.dataset=files expects task.source_file=<path> and task.reference_file=<path>")
        if self.dataset != "files" and any(given):
            raise UsageError(f"task.source_file is read with task.dataset=files only, got task.dataset={self.dataset}")

    def examples(self) -> list[Example]:
        """All pairs of the test set, in its order."""
        source, target = self.pair.split("-")
        if self.dataset == "sample":
            files = [SAMPLE / f"sample.{source}", SAMPLE / f"sample.{target}"]
        elif self.dataset == "files":
            files = [Path(str(self.source_file)), Path(str(self.reference_file))]
        else:
            files = _downloaded(self.dataset, self.pair)
        sources, references = (_lines(file) for file in files)
        if len(sources) != len(references):
            counts = f"{len(sources)} lines in {files[0]}, {len(references)} in {files[1]}"
            raise UsageError(f"expected as many references as sources, got {counts}")
        rows = zip(sources, references, strict=True)
        return [Example(str(i), source, reference) for i, (source, reference) in enumerate(rows)]

    def reversed(self) -> "Wmt":
        """The same test set translated the other way."""
        pair = "-".join(reversed(self.pair.split("-")))
        return replace(self, pair=pair, source_file=self.reference_file, reference_file=self.source_file)

    def prompt_for(self, example: Example) -> str:
        """What the model reads."""
        source, target = (LANGUAGES[code] for code in self.pair.split("-"))
        return Template(self.prompt, self.response).prompt(example, source_language=source, target_language=target)

    def response_for(self, example: Example) -> str:
        """What it should write, the reference in the template's form."""
        return Template(self.prompt, self.response).response(example)

    def hypothesis(self, text: str) -> str:
        """The answer in a model's output: its first line, since a segment is one line."""
        return text.strip().split("\n")[0].strip()

    def score(self, hypotheses: list[str], references: list[str], full: list[str] | None = None) -> Scores:
        """BLEU and chrF, and with the full model's hypotheses a paired comparison."""
        return translation.score(hypotheses, references, full, target_language=self.pair.split("-")[1])


def _lines(file: Path) -> list[str]:
    """The lines of a text file, one segment each."""
    text = read_text(file)
    lines = text.removesuffix("\n").split("\n") if text else []
    if not lines:
        raise UsageError(f"{file} is empty; expected one sentence a line")
    blank = next((i for i, line in enumerate(lines) if not line.strip()), None)
    if blank is not None:
        raise UsageError(f"{file} has an empty line ({blank + 1}); expected one sentence a line")
    return lines


def _downloaded(test_set: str, pair: str) -> list[Path]:
    """Source and reference files of a test set that sacrebleu knows, fetched on first use."""
    from sacrebleu.dataset import DATASETS

    if test_set not in DATASETS:
        raise unknown("task.dataset", test_set, ["sample", "files", *(name for name in DATASETS if name.startswith("wmt"))])
    dataset: Any = DATASETS[test_set]
    if pair not in dataset.langpairs:
        raise UsageError(f"{test_set} has no pair {pair}; it has {', '.join(dataset.langpairs)}")
    try:
        return [Path(dataset.get_source_file(pair)), Path(dataset.get_reference_files(pair)[0])]
    except (Exception, SystemExit) as error:
        raise RunError(f"cannot download {test_set} ({error}); without network use task.dataset=sample or files") from None
