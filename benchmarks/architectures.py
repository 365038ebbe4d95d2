"""Check every causal LM class that the installed transformers maps, and write
docs/architectures.md.

The verdicts are stored in benchmarks/results/architectures.json; `--render` writes the page from
them again.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from architecture_check import (
    NOT_BUILT,
    PADDING_CHANGES,
    REFUSED,
    UNDECIDED,
    WORKS,
    Verdict,
    judge,
)
from tiny_configs import model_types

ROOT = Path(__file__).parent.parent
STORED = ROOT / "benchmarks" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"


def line(verdict: Verdict) -> str:
    """Format a verdict as one line of the terminal."""
    return " | ".join(
        (verdict.name, verdict.outcome, verdict.layers, verdict.engines, verdict.note)
    )


def to_json(verdicts: Iterable[Verdict]) -> str:
    """Write verdicts with their versions as JSON, one class a line."""
    classes = sorted(
        (asdict(replace(verdict, note=reason(verdict))) for verdict in verdicts),
        key=lambda values: values["name"].lower(),
    )
    lines = ",\n".join(f" {json.dumps(values, ensure_ascii=False)}" for values in classes)
    versions = f'"transformers": "{transformers.__version__}", "torch": "{torch.__version__}"'
    return f'{{{versions}, "classes": [\n{lines}\n]}}\n'


def reason(verdict: Verdict) -> str:
    """Return the note of a verdict without the class and the reference to the page."""
    return verdict.note.removeprefix(f"{verdict.name} is not supported: ").split(
        "; docs/architectures.md"
    )[0]


def read(text: str) -> list[Verdict]:
    """Read the verdicts that `to_json` wrote."""
    return [
        Verdict(**{**values, "model_types": tuple(values["model_types"])})
        for values in json.loads(text)["classes"]
    ]


def names(verdicts: Iterable[Verdict]) -> str:
    """List class names in alphabetical order, without the suffix that most of them have."""
    short = (verdict.name.replace("ForCausalLM", "") for verdict in verdicts)
    return ", ".join(sorted(short, key=str.lower))


def page(text: str) -> str:
    """Return the page in Markdown from the text of `to_json`, which has the versions too."""
    verdicts, versions = read(text), json.loads(text)
    by_outcome = {
        outcome: [verdict for verdict in verdicts if verdict.outcome == outcome]
        for outcome in (WORKS, REFUSED, UNDECIDED, NOT_BUILT)
    }
    rest = len(verdicts) - sum(map(len, by_outcome.values()))
    fast = [verdict for verdict in by_outcome[WORKS] if "fast" in verdict.engines]
    slow = [verdict for verdict in by_outcome[WORKS] if "fast" not in verdict.engines]
    padding = names(verdict for verdict in by_outcome[WORKS] if PADDING_CHANGES in verdict.note)
    untested = [*by_outcome[UNDECIDED], *by_outcome[NOT_BUILT]]
    types = sum(len(verdict.model_types) for verdict in verdicts)
    return f"""# Supported architectures

`make architectures` checks the {len(verdicts)} causal LM classes of transformers
{versions["transformers"]} ({types} model types; torch {versions["torch"]}, float32). For several
sets of kept layers, a tiny random instance must have the tokens and logits of a slow reference
without a KV cache. {len(by_outcome[WORKS])} classes work, {rest} give wrong results,
{len(by_outcome[REFUSED])} are refused, and {len(untested)} are not tested ([verdicts and
reasons](../benchmarks/results/architectures.json)). The lists omit the suffix `ForCausalLM`.

## Supported by `engine=torch` ({len(fast)})

{names(fast)}

Left padding changes the answers of {padding}, also of the full model.

## Supported by `engine=transformers` only ({len(slow)})

{names(slow)}

A model that mixes attention with recurrent layers must keep an attention layer.
"""


def main() -> None:
    """Check all classes and write the page, or check the named classes alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="classes to check; nothing is written")
    parser.add_argument(
        "--render",
        action="store_true",
        help="write the page from the stored verdicts, without checks",
    )
    parser.add_argument(
        "--seconds", type=int, default=60, help="CPU seconds to build one class, and to check it"
    )
    args = parser.parse_args()
    if args.render:
        PAGE.write_text(page(STORED.read_text("utf-8")), "utf-8")
        return
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    _limit_memory()
    verdicts = []
    for name, types in model_types().items():
        if args.only is None or name in args.only:
            verdicts.append(judge(name, types, args.seconds))
            print(line(verdicts[-1]), file=sys.stderr, flush=True)
    if args.only is None:
        STORED.write_text(to_json(verdicts), "utf-8")
        PAGE.write_text(page(STORED.read_text("utf-8")), "utf-8")
    sys.exit(any(verdict.outcome in ("silently wrong", "fails") for verdict in verdicts))


def _limit_memory(share: float = 0.5) -> None:
    """Limit this process's memory, so that a class whose smallest instance is huge fails without
    harm to the machine.
    """
    import resource

    import psutil

    most = int(psutil.virtual_memory().total * share)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
