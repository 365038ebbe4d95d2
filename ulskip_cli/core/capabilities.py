"""Capabilities: what a request needs, and what engines and commands support.

`Plan.needs` is a set of `Need`. Each engine (`supports`), each command (`COMMANDS`) and each need
that excludes others (`TOGETHER`) supports a set. `make_plan` refuses the difference in one sentence
that names what would work; nothing else asks what works together. `docs/combinations.md` is printed
from these sets, and tests run every engine with every need, and every pair of needs.
"""

from collections.abc import Mapping, Set
from enum import Enum

from ulskip_cli.core.errors import NotApplicable


class Need(Enum):
    """Something that a request needs: its name in messages, and the option that does without it."""

    BEAMS = (
        "beam search",
        "decoding.num_beams=1 and decoding.no_repeat_ngram_size=0",
    )
    SAMPLING = "sampling", "decoding.do_sample=false"
    LOOK_UPS = "drafts by look-up", "decoding.draft_tokens=0"
    COPY_DRAFTS = "drafts in 4 bits", "decoding.draft=ngram"
    BATCHES = "batches", "batch_size=1"
    EARLY_EXIT = "early exit", "strategy=unified"
    SINGLE_EXITS = "strategy.batch=na", "strategy.batch=min"
    STAGES = "position-dependent layers", "strategy=unified"
    SKIPPED_LAYERS = "skipped layers", "strategy=full"
    ALL_LAYERS = (
        "decode steps of all layers",
        "another strategy than full with a ratio above 1",
    )
    FULL_PROMPT = "prompts that run through layers that decoding skips", "prompt_layers=kept"
    KEPT_PROMPT = "prompt_layers=kept", "prompt_layers=all"
    FIRST_PROMPT = "prompt_layers=first:K", "prompt_layers=all"
    FITTED_PATCHES = (
        "correction=patch",
        "correction=none, or the patches of a run in calibrations/ by correction=adapter",
    )
    PATCHES = "patches that are not folded", "correction.kind=folded"
    ADAPTER = "correction=adapter", "correction=none"
    NO_TOKENIZER = "models without a tokenizer", "another model, or `ulskip bench`"
    CALIBRATION = (
        "uncalibrated strategies",
        "the values of a row's calibration as strategy.KEY=VALUE",
    )
    OTHER_BASELINE = "another engine of the baseline", "baseline_engine=null"
    OTHER_ENGINE = "engines of other libraries", "engine=auto"

    def __init__(self, text: str, remedy: str) -> None:
        self.text, self.remedy = text, remedy


ALL = frozenset(Need)
DRAFTS = frozenset({Need.LOOK_UPS, Need.COPY_DRAFTS})
# A check of drafts takes the most likely tokens, which sampling changes, gains nothing in batches,
# and has the same layers for all its tokens.
_DRAFTED = ALL - {Need.BEAMS, Need.SAMPLING, Need.BATCHES, Need.EARLY_EXIT, Need.STAGES}

# For a need that excludes others: the needs that can be combined with it.
TOGETHER: Mapping[Need, frozenset[Need]] = {
    Need.LOOK_UPS: _DRAFTED,
    Need.COPY_DRAFTS: _DRAFTED,
    Need.EARLY_EXIT: ALL
    - {Need.BEAMS, Need.KEPT_PROMPT, Need.FITTED_PATCHES, Need.PATCHES, Need.ADAPTER},
    Need.SINGLE_EXITS: ALL - {Need.BATCHES},
}

_RUN = ALL - {Need.NO_TOKENIZER}
_SAME_LAYERS = _RUN - {Need.EARLY_EXIT, Need.STAGES}  # in every step
_FIXED_LAYERS = ALL - {Need.CALIBRATION, Need.OTHER_ENGINE, Need.FIRST_PROMPT}
_CHECKPOINT = _FIXED_LAYERS & _SAME_LAYERS - {Need.FITTED_PATCHES, Need.PATCHES}

COMMANDS: Mapping[str, frozenset[Need]] = {
    "run": _RUN,  # also for sweep
    "bench": ALL - {Need.EARLY_EXIT},
    "generate": _RUN - {Need.OTHER_BASELINE},
    "plan": ALL,
    "tune": _SAME_LAYERS - DRAFTS - {Need.FIRST_PROMPT},  # it tries look-ups itself
    "train": _RUN - {Need.FIRST_PROMPT},
    "train train.method=adapter": _RUN
    - {Need.EARLY_EXIT, Need.KEPT_PROMPT, Need.FIRST_PROMPT, Need.ALL_LAYERS},
    # Its tasks set sampling.
    "lm-eval": _RUN & _FIXED_LAYERS - {Need.FITTED_PATCHES, Need.SAMPLING},
    "export --format hf": _CHECKPOINT,
    "export --format gguf": _CHECKPOINT,
    "export --format schedule": _FIXED_LAYERS - {Need.EARLY_EXIT},
}


def check(needs: Set[Need], command: str) -> None:
    """Raise NotApplicable if a command does not support a need, or two needs exclude each other."""
    missing = needs - COMMANDS[command]
    if missing:
        raise NotApplicable(
            f"`ulskip {command}` does not support {texts(missing)}; use {remedies(missing)}"
        )
    for need, partners in TOGETHER.items():
        missing = needs - partners
        if need in needs and missing:
            raise NotApplicable(
                f"{need.text} cannot be combined with {texts(missing)}; use {remedies(missing)}"
                f" or {need.remedy}"
            )


def needed(wanted: Mapping[Need, object]) -> frozenset[Need]:
    """Return the needs whose condition is true."""
    return frozenset(need for need, is_used in wanted.items() if is_used)


def texts(needs: Set[Need]) -> str:
    """Name needs in declared order."""
    return " and ".join(need.text for need in Need if need in needs)


def remedies(needs: Set[Need]) -> str:
    """Name the options that do without these needs."""
    return " and ".join(dict.fromkeys(need.remedy for need in Need if need in needs))
