"""Flags only: the kept layers as a model of their own, and as the draft model of the full one."""

import pytest
from conftest import assert_equal_but_ties, run_offline

LENGTHS = {"tiny": 512, "smollm2-135m": 2048}


def generate(tmp_path, data, name, **engine):
    """Return tokens and metrics of a vLLM engine for the prompts of the expected tokens."""
    done, result = run_offline(tmp_path, data, max_model_len=LENGTHS[name], **engine)
    assert result, done.stderr[-3000:]
    return result


@pytest.mark.parametrize(
    ("name", "run", "folder"),
    [("tiny", "kept", "pair"), ("smollm2-135m", "kept", "pair"), ("tiny", "folded_kept", "folded")],
)
def test_an_export_generates_the_tokens_of_the_kept_layers(name, run, folder, expected, tmp_path):
    data = expected(name)
    result = generate(tmp_path, data, name, model=str(data["folder"] / folder))
    assert_equal_but_ties(result["tokens"], data[run], f"{name}: export {folder} alone")


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m"])
def test_drafting_with_the_kept_layers_generates_the_tokens_of_the_full_model(
    name, expected, tmp_path
):
    data = expected(name)
    draft = {
        "method": "draft_model",
        "model": str(data["folder"] / "pair"),
        "num_speculative_tokens": 3,
    }
    result = generate(
        tmp_path,
        data,
        name,
        model=str(data["folder"] / "pair" / "prefill"),
        speculative_config=draft,
    )
    drafted, accepted = (
        result["metrics"][f"vllm:spec_decode_num_{key}_tokens"] for key in ("draft", "accepted")
    )
    assert drafted > accepted > 0
    assert_equal_but_ties(
        result["tokens"],
        data["full"],
        f"{name}: lossless, {accepted / drafted:.0%} of drafts accepted",
    )
