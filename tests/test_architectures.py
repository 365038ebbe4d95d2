"""Some rows of docs/architectures.md are checked again."""

import re
from pathlib import Path

import architectures
import pytest
import transformers
from architecture_check import FAILS, REFUSED, WORKS, WRONG, judge
from tiny_configs import model_types

PAGE = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text("utf-8")
ROWS = {
    line.split(" | ")[0].removeprefix("| "): line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line
}
# Classes with experts, windows, chunks, recurrent layers alone or with attention, indexed keys, unusual names, and refusals.
AGAIN = [
    "MixtralForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM", "Qwen3NextForCausalLM", "MambaForCausalLM",
    "BambaForCausalLM", "DeepseekV32ForCausalLM", "GPTNeoForCausalLM", "DoryForCausalLM", "Inkling2ForCausalLM",
    "ZayaForCausalLM", "RobertaForCausalLM",
]  # fmt: skip
same_transformers = pytest.mark.skipif(
    f"transformers {transformers.__version__} " not in PAGE.split("##")[0],
    reason="the page has another version of transformers",
)


@same_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AGAIN)
def test_the_page_says_what_is_found_again(name):
    assert ROWS[name] == architectures.line(judge(name, model_types()[name]))


@same_transformers
def test_the_page_has_every_class_and_its_counts():
    assert set(ROWS) - {"class"} == set(model_types())
    for outcome, count in re.findall(r"- \*\*(\d+) ([a-z ]+)\*\*", PAGE):
        assert sum(f" | {count} | " in line for line in ROWS.values()) == int(outcome)


def test_nothing_is_silently_wrong():
    assert not [line for line in ROWS.values() if f" | {WRONG} | " in line or f" | {FAILS} | " in line]
    assert sum(f" | {WORKS} | " in line for line in ROWS.values()) > 100
    assert sum(f" | {REFUSED} | " in line for line in ROWS.values()) > 10
