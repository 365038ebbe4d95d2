"""Try every causal LM class that the installed transformers knows, and write docs/architectures.md."""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from architecture_check import KEPT_SETS, NEAR, PROMPT_LEN, STEPS, Verdict, judge
from tiny_configs import NUM_LAYERS, model_types

ROOT = Path(__file__).parent.parent
ORDER = ("works", "refused", "undecided", "not built", "fails", "silently wrong")
MEANING = {
    "works": "agrees with the uncached reference for every kept set that is not refused",
    "refused": "ulskip refuses it with one line that names the reason",
    "undecided": "the full model's own generate differs from its forward pass, so there is nothing to compare with",
    "not built": "no tiny random instance can be made or run here; the note has the reason",
    "fails": "ends with an unexpected error",
    "silently wrong": "its tokens or logits differ from the reference",
}
HEAD = """| class | model types | layers | verdict | engines | note |
| --- | --- | --- | --- | --- | --- |"""


def line(verdict: Verdict) -> str:
    """Format a verdict as a row of the table."""
    types = ", ".join(verdict.model_types)
    note = verdict.note.removeprefix(f"{verdict.name} is not supported: ").split("; docs/architectures.md")[0].replace("|", "/")
    cells = (verdict.name, types, verdict.layers, verdict.outcome, verdict.engines, note)
    return "| " + " | ".join(cells) + " |"


def page(verdicts: Sequence[Verdict]) -> str:
    """Write the page as Markdown."""
    found = Counter(verdict.outcome for verdict in verdicts)
    fast = sum("fast" in verdict.engines for verdict in verdicts)
    kinds = sum(len(verdict.model_types) for verdict in verdicts)
    counts = [f"- **{found[outcome]} {outcome}**: {MEANING[outcome]}" for outcome in ORDER]
    rows = sorted(verdicts, key=lambda verdict: (ORDER.index(verdict.outcome), verdict.name.lower()))
    return f"""# Architectures

This page lists the support of `ulskip` for every causal LM class that transformers {transformers.__version__} maps for
`AutoModelForCausalLM`: {len(verdicts)} classes, {kinds} model types. `make architectures` checks a tiny random instance
of each (float32 on a CPU, torch {torch.__version__}) and writes this page; the test suite checks some rows again.

{chr(10).join(counts)}

Of those that work, {fast} also run on the fast engine; the others decode through transformers' own `generate`.

## Method

Each instance has {NUM_LAYERS} layers of width 32, built from the class's own config, with small windows, few experts, all
kinds of layers of the class and random weights that all matter. The prompt of {PROMPT_LEN} tokens runs through all
layers. The layers {", ".join(map(str, map(list, KEPT_SETS)))} then generate {STEPS} tokens each; if a class has several
kinds of layers, so do the layers of each kind alone. The reference shares no code with `ulskip`: it runs the full model
without a cache, and its skipped layers return their input at every position after the prompt. Greedy tokens must be
equal, except for ties within {NEAR:g} standard deviations of the logits, and so must the teacher-forced logits that the
decode loss uses. The check then compares the fast engine with `generate`, and a padded batch with single prompts. An
instance whose output does not depend on skipping does not count as one that works.

A model that mixes attention with recurrent layers (Mamba, linear attention, convolutions) must keep an attention layer,
because only attention layers count positions; its note says so. Recurrent layers process a given text token by token, so
the decode loss is slower there. A row does not cover options that its tiny instance does not have.

{HEAD}
{chr(10).join(map(line, rows))}
"""


def main() -> None:
    """Check all classes and write the page, or check the named classes alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="classes to check; the page is not written then")
    parser.add_argument("--seconds", type=int, default=60, help="CPU seconds to build one class, and to check it")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "architectures.md")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    _limit_memory()
    verdicts = []
    for name, types in model_types().items():
        if args.only is None or name in args.only:
            verdicts.append(judge(name, types, args.seconds))
            print(line(verdicts[-1]), file=sys.stderr, flush=True)
    if args.only is None:
        args.output.write_text(page(verdicts), "utf-8")
    sys.exit(any(verdict.outcome in ("silently wrong", "fails") for verdict in verdicts))


def _limit_memory(share: float = 0.5) -> None:
    """Limit this process's memory, so that a class whose smallest instance is huge fails without harm to the machine."""
    import resource

    import psutil

    most = int(psutil.virtual_memory().total * share)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
