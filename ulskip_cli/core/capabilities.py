"""Capabilities: what a request needs, and what engines and commands support. Values that depend on
other values are checked in `validation.py`, and drafts with the layers of a plan in
`strategies/plan.py`.

A request needs a set of `Need`. Each engine supports a set (`supports` of its class), each command
too (`COMMANDS`), and a need that excludes others has its own set in `TOGETHER`. `check` refuses the
difference in one sentence that names what would work. `docs/combinations.md` is printed from these
sets, and tests run every engine with every need, and every pair of needs, on a tiny model.
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
    DRAFTS = "drafts", "decoding.draft_tokens=0"
    LAYER_DRAFTS = "drafts of layers", "decoding.draft_tokens=0"
    EARLY_EXIT = "early exit", "strategy=unified"
    STAGES = "position-dependent layers", "strategy=unified"
    FULL_PROMPT = "prompts that run through layers that decoding skips", "prompt_layers=kept"
    KEPT_PROMPT = "prompt_layers=kept", "prompt_layers=all"
    FOLDED_PATCHES = (
        "correction=patch with folded patches",
        "correction=none, or to export them correction=adapter with their folder in calibrations/",
    )
    PATCHES = "patches that are not folded", "correction=none"
    ADAPTER = "correction=adapter", "correction=none"
    RANDOM_WEIGHTS = "random weights", "a pretrained model"
    CALIBRATION = (
        "uncalibrated strategies",
        "the values of a row's calibration as strategy.KEY=VALUE",
    )
    OTHER_BASELINE = "another engine of the baseline", "baseline_engine=null"
    OTHER_ENGINE = "engines of other libraries", "engine=auto"

    def __init__(self, text: str, remedy: str) -> None:
        self.text, self.remedy = text, remedy


ALL = frozenset(Need)
_CORRECTED = {Need.FOLDED_PATCHES, Need.PATCHES, Need.ADAPTER}
# A check takes the most likely tokens, which sampling changes.
_DRAFTED = ALL - {Need.BEAMS, Need.SAMPLING, Need.EARLY_EXIT, Need.STAGES, Need.KEPT_PROMPT}

# For a need that excludes others: the needs that can be combined with it.
TOGETHER: Mapping[Need, frozenset[Need]] = {
    Need.DRAFTS: _DRAFTED,
    Need.LAYER_DRAFTS: _DRAFTED,
    Need.EARLY_EXIT: ALL - {Need.BEAMS} - _CORRECTED - {Need.KEPT_PROMPT},
    Need.RANDOM_WEIGHTS: ALL - {Need.ADAPTER},
}

_SAME_LAYERS = ALL - {Need.EARLY_EXIT, Need.STAGES}  # in every step
_FIXED_LAYERS = ALL - {Need.CALIBRATION, Need.OTHER_ENGINE}
_CHECKPOINT = _FIXED_LAYERS & _SAME_LAYERS - {
    Need.PATCHES,
    Need.RANDOM_WEIGHTS,
    Need.DRAFTS,
    Need.FOLDED_PATCHES,
}

COMMANDS: Mapping[str, frozenset[Need]] = {
    "run": ALL,
    "sweep": ALL,
    "bench": ALL - {Need.EARLY_EXIT},
    "generate": ALL - {Need.RANDOM_WEIGHTS, Need.OTHER_BASELINE},
    "plan": ALL,
    # it tries look-ups itself
    "tune": _SAME_LAYERS - {Need.RANDOM_WEIGHTS, Need.DRAFTS, Need.LAYER_DRAFTS},
    "train": ALL - {Need.RANDOM_WEIGHTS},
    "lm-eval": _FIXED_LAYERS
    - {Need.RANDOM_WEIGHTS, Need.FOLDED_PATCHES, Need.PATCHES}
    - {Need.SAMPLING},  # which its tasks set
    "export --format hf": _CHECKPOINT,
    "export --format gguf": _CHECKPOINT,
    "export --format schedule": _FIXED_LAYERS - {Need.EARLY_EXIT},
}


def check(needs: Set[Need], command: str = "run") -> None:
    """Raise NotApplicable if two needs exclude each other, or if a command does not support one."""
    for need, partners in TOGETHER.items():
        missing = needs - partners
        if need in needs and missing:
            raise NotApplicable(
                f"{need.text} cannot be combined with {texts(missing)}; use {remedies(missing)}"
                f" or {need.remedy}"
            )
    missing = needs - COMMANDS[command]
    if missing:
        raise NotApplicable(
            f"`ulskip {command}` does not support {texts(missing)}; use {remedies(missing)}"
        )


def needed(wanted: Mapping[Need, object]) -> frozenset[Need]:
    """Return the needs whose condition is true."""
    return frozenset(need for need, is_used in wanted.items() if is_used)


def texts(needs: Set[Need]) -> str:
    """Name needs in the order of their declaration."""
    return " and ".join(need.text for need in Need if need in needs)


def remedies(needs: Set[Need]) -> str:
    """Name the options that do without these needs."""
    return " and ".join(dict.fromkeys(need.remedy for need in Need if need in needs))
