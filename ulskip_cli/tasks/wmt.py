"""Translation: sentences, references, BLEU and chrF."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import RunError, UsageError, unknown
from ulskip_cli.tasks import hubdata
from ulskip_cli.tasks.example import Example, from_rows
from ulskip_cli.tasks.languages import LANGUAGES
from ulskip_cli.tasks.metrics.scores import Scoring
from ulskip_cli.tasks.prompts import AUTO, Template, pick
from ulskip_cli.tasks.textfile import read_lines

SAMPLE = Path(__file__).parent.parent / "assets" / "wmt_sample"
SAMPLES = ("sample", "held_out")  # bundled
SAMPLE_PAIRS = ("de-en", "en-de")


@dataclass(frozen=True)
class Wmt:
    """One language pair of one test set.

    Attributes:
        pair: codes of source and target language, `zh-en`.
        dataset: `sample` or `held_out` (bundled, de-en and en-de), `files`, a test set that sacrebleu downloads by name
            (`wmt22`), or a dataset's hub id or folder.
        source_file: with `files`, one sentence a line, plain or gzipped.
        reference_file: with `files`, as many lines.
        subset: of a hub dataset; None: the one named like the pair, or the only one.
        split: of a hub dataset.
        source_key: where a row of it has the source; None: `translation.<language>` or `<language>`.
        reference_key: likewise the reference.
        max_new_tokens: length of an answer, the decoding preset's default.
        metrics: names of metrics.
        tokenize: see `Scoring`; None: sacrebleu's choice for the target language.
        comet_model: see `Scoring`.
        bertscore_model: see `Scoring`.
        template: which of `templates`, or `auto`.
        templates: prompt and response by name.
        prompt: instead of the template's.
        response: instead of the template's.
        source_language: the source's name in a prompt; None: by its code.
        target_language: likewise the target's.
    """

    pair: str = "de-en"
    dataset: str = "sample"
    source_file: str | None = None
    reference_file: str | None = None
    subset: str | None = None
    split: str = "test"
    source_key: str | None = None
    reference_key: str | None = None
    max_new_tokens: int = 64
    metrics: list[str] = field(default_factory=lambda: ["bleu", "chrf"])
    tokenize: str | None = None
    comet_model: str = Scoring.comet_model
    bertscore_model: str | None = None
    template: str = AUTO
    templates: dict[str, dict[str, str]] = field(default_factory=dict)
    prompt: str | None = None
    response: str | None = None
    source_language: str | None = None
    target_language: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown pair, and files without their paths."""
        codes = self.pair.split("-")
        if len(codes) != 2 or codes[0] == codes[1]:
            raise UsageError(f"expected task.pair to be two different languages like de-en, got '{self.pair}'")
        for side, code in zip(("source", "target"), codes, strict=True):
            if code not in LANGUAGES and not getattr(self, f"{side}_language"):
                raise UsageError(
                    f"unknown language '{code}' in task.pair={self.pair}; expected ISO 639-1 codes like de-en, zh-en; "
                    f"name any other language with task.{side}_language=NAME"
                )
        if self.dataset in SAMPLES and self.pair not in SAMPLE_PAIRS:
            raise UsageError(
                f"the sample has the pairs {' and '.join(SAMPLE_PAIRS)}, not {self.pair}; "
                "give task.dataset=files, wmt22 or another test set"
            )
        given = [self.source_file, self.reference_file]
        if self.dataset == "files" and None in given:
            raise UsageError("task.dataset=files expects task.source_file=<path> and task.reference_file=<path>")
        if self.dataset != "files" and any(given):
            raise UsageError(f"task.source_file is read with task.dataset=files only, got task.dataset={self.dataset}")

    @property
    def cuts_source(self) -> bool:
        """Half a sentence has another translation."""
        return False

    @property
    def data(self) -> str:
        """The dataset's name."""
        return self.dataset

    @property
    def languages(self) -> tuple[str, str]:
        """Codes of source and target."""
        source, target = self.pair.split("-")
        return source, target

    def examples(self) -> list[Example]:
        """All pairs of the test set, in its order."""
        source, target = self.languages
        if self.dataset in SAMPLES:
            files = [SAMPLE / f"{self.dataset}.{language}" for language in (source, target)]
        elif self.dataset == "files":
            files = [Path(str(file)).expanduser() for file in (self.source_file, self.reference_file)]
        elif hubdata.is_hub_name(self.dataset):
            return self._from_hub()
        else:
            files = _downloaded(self.dataset, self.pair)
        sources, references = (read_lines(file) for file in files)
        if len(sources) != len(references):
            counts = f"{len(sources)} lines in {files[0]}, {len(references)} in {files[1]}"
            raise UsageError(f"expected as many references as sources, got {counts}")
        rows = zip(sources, references, strict=True)
        return [Example(str(i), source, reference) for i, (source, reference) in enumerate(rows)]

    def held_out(self) -> "Wmt | None":
        """What the bundled sample holds out."""
        return replace(self, dataset="held_out") if self.dataset == "sample" else None

    def reversed(self) -> "Wmt":
        """The same test set translated the other way."""
        return replace(
            self,
            pair="-".join(reversed(self.languages)),
            source_language=self.target_language,
            target_language=self.source_language,
            source_file=self.reference_file,
            reference_file=self.source_file,
            source_key=self.reference_key,
            reference_key=self.source_key,
        )

    def template_for(self, has_chat: bool) -> Template:
        """How a sentence is put to a model."""
        source, target = self.languages
        fields = {
            "source_language": self.source_language or LANGUAGES[source],
            "target_language": self.target_language or LANGUAGES[target],
        }
        return pick(self.templates, self.template, has_chat, self.prompt, self.response, fields)

    def hypothesis(self, text: str) -> str:
        """The answer in a model's output: its first line, since a segment is one line."""
        return text.strip().split("\n")[0].strip()

    def scoring(self) -> Scoring:
        """BLEU and chrF, unless other metrics are named."""
        return Scoring(
            tuple(self.metrics),
            self.languages[1],
            self.tokenize,
            comet_model=self.comet_model,
            bertscore_model=self.bertscore_model,
        )

    def _from_hub(self) -> list[Example]:
        """The rows of a hub dataset, whose sentences lie in `translation` or under keys of their own."""
        source, target = self.languages
        rows = hubdata.rows(self.dataset, self.subset, self.split, likely=(self.pair, f"{target}-{source}"))
        flat = [{**row, **(row.get("translation") or {})} for row in rows]
        return from_rows(flat, self.source_key or source, self.reference_key or target, self.dataset)


def _downloaded(test_set: str, pair: str) -> list[Path]:
    """Source and reference files of a test set that sacrebleu knows, fetched on first use."""
    from sacrebleu.dataset import DATASETS

    if test_set not in DATASETS:
        known = ["sample", "files", *(name for name in DATASETS if name.startswith("wmt"))]
        raise unknown("task.dataset", test_set, [*known, "a hub id (owner/name)", "a folder"])
    dataset: Any = DATASETS[test_set]
    if pair not in dataset.langpairs:
        raise UsageError(f"{test_set} has no pair {pair}; it has {', '.join(dataset.langpairs)}")
    try:
        return [Path(dataset.get_source_file(pair)), Path(dataset.get_reference_files(pair)[0])]
    except (Exception, SystemExit) as error:
        raise RunError(f"cannot download {test_set} ({error}); without network use task.dataset=sample or files") from None
