"""Translation of any language pair, scored by BLEU and chrF."""

from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from ulskip_cli.core.errors import UsageError, unknown
from ulskip_cli.core.files import user_path
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Example, Scoring, Task
from ulskip_cli.tasks.example_files import (
    examples_from_rows,
    is_dataset,
    load_dataset_rows,
    read_lines,
)
from ulskip_cli.tasks.metrics import metrics_option

SAMPLE = Path(__file__).parent.parent / "assets" / "wmt_sample"
SAMPLES = ("sample", "held_out")  # bundled
SAMPLE_PAIRS = ("de-en", "en-de")
# English names by ISO 639-1 code, for prompts: languages of WMT and the larger ones of FLORES.
_NAMES = """
af Afrikaans, am Amharic, ar Arabic, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali, bs
Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish, de German, el Greek, en English, es Spanish,
et Estonian, eu Basque, fa Persian, fi Finnish, fr French, ga Irish, gl Galician, gu Gujarati,
ha Hausa, he Hebrew, hi Hindi, hr Croatian, hu Hungarian, hy Armenian, id Indonesian, ig Igbo,
is Icelandic, it Italian, iu Inuktitut, ja Japanese, ka Georgian, kk Kazakh, km Khmer, kn
Kannada, ko Korean, liv Livonian, lo Lao, lt Lithuanian, lv Latvian, mk Macedonian, ml
Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, nb Norwegian Bokmål, ne
Nepali, nl Dutch, no Norwegian, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian, ru
Russian, sah Sakha, si Sinhala, sk Slovak, sl Slovenian, so Somali, sq Albanian, sr Serbian, sv
Swedish, sw Swahili, ta Tamil, te Telugu, th Thai, tl Tagalog, tr Turkish, uk Ukrainian, ur
Urdu, uz Uzbek, vi Vietnamese, xh Xhosa, yo Yoruba, zh Chinese, zu Zulu
"""
LANGUAGES = dict(entry.split(maxsplit=1) for entry in " ".join(_NAMES.split()).split(", "))


class Wmt(Task):
    """Sentences of one language pair from one test set."""

    max_new_tokens = 64

    pair: str = option("de-en", "ISO 639-1 codes of source and target language")
    dataset: str = option(
        "sample",
        "sample (bundled), files, a sacrebleu test set such as wmt22, or a hub id or folder",
    )
    source_file: str | None = option(
        None, "source sentences for dataset=files, one per line, plain or .gz"
    )
    reference_file: str | None = option(
        None, "reference translations for dataset=files, one per line, plain or .gz"
    )
    subset: str | None = option(None, "subset of a hub dataset; null: the one named after the pair")
    metrics: tuple[str, ...] = metrics_option("bleu", "chrf")

    @model_validator(mode="after")
    def _check(self) -> Self:
        codes = self.pair.split("-")
        if len(codes) != 2 or codes[0] == codes[1]:
            raise UsageError(
                f"expected task.pair to be two different languages like de-en, got '{self.pair}'"
            )
        for code in codes:
            if code not in LANGUAGES:
                raise UsageError(
                    f"unknown language '{code}' in task.pair={self.pair}; use ISO 639-1 codes like"
                    " de-en, or task=jsonl"
                )
        if self.dataset in SAMPLES and self.pair not in SAMPLE_PAIRS:
            raise UsageError(
                f"expected task.pair to be {' or '.join(SAMPLE_PAIRS)} with the bundled sample, got"
                f" {self.pair}; use task.dataset=files or a test set such as task.dataset=wmt22"
            )
        given = [file for file in (self.source_file, self.reference_file) if file is not None]
        if len(given) != (2 if self.dataset == "files" else 0):
            raise UsageError(
                "task.dataset=files, task.source_file=<path> and task.reference_file=<path> require"
                f" one another, got task.dataset={self.dataset}"
            )
        return self

    @property
    def data(self) -> str:
        """Name of the source file or the dataset."""
        return Path(self.source_file).name if self.source_file else self.dataset

    @property
    def location(self) -> str:
        """The source file or the dataset, and the languages."""
        where = str(Path(self.source_file).resolve()) if self.source_file else super().location
        return f"{where} {self.pair}"

    @property
    def languages(self) -> tuple[str, str]:
        """Language codes of source and target."""
        source, target = self.pair.split("-")
        return source, target

    def examples(self) -> list[Example]:
        """Return all sentence pairs in the order of the test set."""
        is_of_files = self.dataset == "files" or self.dataset in SAMPLES
        if not is_of_files and is_dataset(self.dataset):
            return self._dataset_examples()
        source_file, reference_file = self._files()
        sources, references = read_lines(source_file), read_lines(reference_file)
        if len(sources) != len(references):
            counts = f"{len(sources)} lines in {source_file}, {len(references)} in {reference_file}"
            raise UsageError(f"expected equal numbers of sources and references, got {counts}")
        pairs = zip(sources, references, strict=True)
        return [
            Example(str(index), source, reference)
            for index, (source, reference) in enumerate(pairs)
        ]

    def _dataset_examples(self) -> list[Example]:
        """Read the sentence pairs of a hub dataset or folder."""
        source, target = self.languages
        # A subset named after the opposite direction has the same sentences.
        subsets = self.pair, f"{target}-{source}"
        rows = []
        for row in load_dataset_rows(self.dataset, self.subset, self.split, subsets):
            texts = row.get("translation")  # under which e.g. WMT holds a table of both texts
            rows.append({**row, **texts} if isinstance(texts, dict) else row)
        return examples_from_rows(rows, source, target, self.dataset)

    def _files(self) -> tuple[Path, Path]:
        """Return the files of sources and of references."""
        source, target = self.languages
        if self.dataset in SAMPLES:
            return SAMPLE / f"{self.dataset}.{source}", SAMPLE / f"{self.dataset}.{target}"
        if self.source_file and self.reference_file:
            what = "the file of a task"
            return user_path(self.source_file, what), user_path(self.reference_file, what)
        return _download(self.dataset, self.pair)

    def held_out(self) -> Self | None:
        """Return the bundled held-out sentences; None for other data than the sample."""
        return self.replace(dataset="held_out") if self.dataset == "sample" else None

    def template_fields(self) -> dict[str, str]:
        """Return the names of the languages."""
        source, target = self.languages
        return {"source_language": LANGUAGES[source], "target_language": LANGUAGES[target]}

    def hypothesis(self, text: str) -> str:
        """Return the first line of the output, since every segment is one line."""
        return text.strip().split("\n")[0].strip()

    def scoring(self) -> Scoring:
        """Return the metrics and the target language."""
        return Scoring(self.metrics, self.languages[1])


def _download(test_set: str, pair: str) -> tuple[Path, Path]:
    """Return the files of sources and references of a sacrebleu test set, downloaded once; raise
    UsageError if sacrebleu lacks the set or the pair.
    """
    from sacrebleu.dataset import DATASETS

    if test_set not in DATASETS:
        sets = [name for name in DATASETS if name.startswith("wmt") and "/" not in name]
        known = ["sample", "files", *sets, "a hub id (owner/name)", "a folder"]
        raise unknown("task.dataset", test_set, known)
    dataset: Any = DATASETS[test_set]
    if pair not in dataset.langpairs:
        raise UsageError(
            f"{test_set} has no task.pair={pair}; use one of {', '.join(dataset.langpairs)}"
        )
    try:
        return Path(dataset.get_source_file(pair)), Path(dataset.get_reference_files(pair)[0])
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"cannot download {test_set} ({error}); without a network use task.dataset=sample or"
            " task.dataset=files"
        ) from None
