"""One server: tokens, continuous batching, chunked prefill, preemption, stop strings, seeds,
refusals.
"""

import time

import pytest
from conftest import (
    OneProcess,
    Pair,
    answers_with_options,
    assert_equal_but_ties,
    run_offline,
    tokens_of,
)

from ulskip_vllm import MODELS, PROMPT_LENGTHS, PROMPT_LENGTHS_MODULE
from ulskip_vllm.pair_export import ROLES

# A small KV cache forces preemptions, and a step of 16 tokens splits prompts and mixes them with
# generated tokens.
SMALL = [
    "--block-size",
    "32",
    "--max-model-len",
    "192",
    "--max-num-seqs",
    "8",
    "--num-gpu-blocks-override",
    "7",
]
CHUNKED = [*SMALL, "--max-num-batched-tokens", "16", "--enable-chunked-prefill"]
SETTINGS = {
    "chunked": CHUNKED,
    "chunked, synchronous": [*CHUNKED, "--no-async-scheduling"],
    "plain": ["--no-enable-chunked-prefill"],
}


@pytest.fixture(scope="module", params=SETTINGS)
def tiny(request, expected, tmp_path_factory):
    """The server of the embedded model, with the expected tokens."""
    data = expected("tiny")
    served = OneProcess(
        tmp_path_factory.mktemp("tiny"), data["folder"] / "pair", *SETTINGS[request.param]
    )
    served.setting = request.param
    yield served, data
    served.stop()


def test_the_tokens_are_those_of_two_phases(tiny):
    served, data = tiny
    answers = served.complete_all(data, clients=12)  # requests arrive while others decode
    preempted = served.server.metric("vllm:num_preemptions_total")
    label = f"tiny: one process, {served.setting}, 12 clients, {preempted:.0f} preemptions"
    assert_equal_but_ties(list(map(tokens_of, answers)), data["pair"], label)
    assert (preempted > 0) == (served.setting != "plain")
    assert (
        sum(
            found != other
            for found, other in zip(map(tokens_of, answers), data["full"]["tokens"], strict=True)
        )
        > 9
    )


def test_streaming_gives_the_same_text(tiny):
    served, data = tiny
    _, whole = served.complete(data["prompt_ids"][3], max_tokens=24)
    status, events = served.complete(data["prompt_ids"][3], max_tokens=24, stream=True)
    assert status == 200 and len(events) > 3
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]


def test_a_stop_string_ends_the_answer(tiny):
    served, data = tiny
    _, whole = served.complete(data["prompt_ids"][5], max_tokens=24)
    text = whole["choices"][0]["text"]
    words = text.split()
    for stop in (words[0][:2], words[2]):  # in the first token, and later
        _, stopped = served.complete(data["prompt_ids"][5], max_tokens=24, stop=[stop])
        assert stopped["choices"][0]["text"] == text[: text.index(stop)]
        assert stopped["choices"][0]["stop_reason"] == stop


def test_options_of_one_token(tiny):
    served, data = tiny
    ids, expected = data["prompt_ids"][1], data["pair"]["tokens"][1]
    assert tokens_of(served.complete(ids, max_tokens=1)) == expected[:1]
    assert tokens_of(served.complete(ids, max_tokens=4, min_tokens=3)) == expected[:4]
    assert (
        tokens_of(served.complete(ids, max_tokens=6, stop_token_ids=[expected[2]])) == expected[:3]
    )
    # A prompt of one token.
    assert len(tokens_of(served.complete(ids[:1], max_tokens=3, ignore_eos=True))) == 3


def test_logprobs_are_those_of_the_answer(tiny):
    served, data = tiny
    answer = served.complete(data["prompt_ids"][1], max_tokens=8, logprobs=1)
    assert tokens_of(answer) == data["pair"]["tokens"][1][:8]
    assert len(answer[1]["choices"][0]["logprobs"]["token_logprobs"]) == 8


def test_sampling_with_a_seed_is_repeatable(tiny):
    served, data = tiny
    options = {"temperature": 1.5, "max_tokens": 16}
    if served.setting != "plain":
        status, body = served.complete(data["prompt_ids"][7], seed=3, **options)
        assert status == 400 and "--no-enable-chunked-prefill" in body["error"]["message"]
        return
    one, two, other = (
        tokens_of(served.complete(data["prompt_ids"][7], seed=seed, **options))
        for seed in (3, 3, 4)
    )
    assert one == two != other
    status, body = served.complete(data["prompt_ids"][7], seed=3, n=2, **options)
    assert status == 200 and [choice["token_ids"] for choice in body["choices"]] == [one, other]


def test_beam_search_is_refused_and_the_server_goes_on(tiny):
    served, data = tiny
    status, body = served.complete(data["prompt_ids"][0], use_beam_search=True, n=2)
    assert status == 400 and "use_beam_search" in body["error"]["message"]
    assert (
        tokens_of(served.complete(data["prompt_ids"][0], max_tokens=48, use_beam_search=False))
        == data["pair"]["tokens"][0]
    )


def test_a_client_that_disconnects_ends_its_request(tiny):
    served, data = tiny
    before = served.server.metric("vllm:generation_tokens_total")
    events = served.stream(data["prompt_ids"][0], max_tokens=150, ignore_eos=True)
    assert next(events)["choices"]
    events.close()
    end = time.time() + 60
    while served.server.metric("vllm:num_requests_running"):
        assert time.time() < end
        time.sleep(0.2)
    assert served.server.metric("vllm:generation_tokens_total") - before < 150
    assert (
        tokens_of(served.complete(data["prompt_ids"][0], max_tokens=48))
        == data["pair"]["tokens"][0]
    )


def test_the_tokens_of_a_larger_model(expected, tmp_path):
    data = expected("smollm2-135m")
    served = OneProcess(
        tmp_path,
        data["folder"] / "pair",
        "--max-num-batched-tokens",
        "256",
        "--max-model-len",
        "1024",
    )
    try:
        answers = served.complete_all(data, clients=12)
    finally:
        served.stop()
    assert_equal_but_ties(
        list(map(tokens_of, answers)), data["pair"], "smollm2-135m: one process, 12 clients"
    )


def test_two_tensor_parallel_workers(expected, tmp_path):
    data = expected("tiny")
    served = OneProcess(
        tmp_path, data["folder"] / "pair", "--tensor-parallel-size", "2", "--max-model-len", "256"
    )
    try:
        answers = served.complete_all(data, clients=8)
    finally:
        served.stop()
    assert_equal_but_ties(
        list(map(tokens_of, answers)), data["pair"], "tiny: one process, tensor-parallel size 2"
    )


def test_one_process_answers_as_two_servers(expected, tmp_path):
    """Every option must give the answer of a pair, sampling included."""
    data = expected("smollm2-135m")
    export, length = data["folder"] / "pair", ["--max-model-len", "1024"]
    answers = []
    for service, *options in (
        (Pair, length, length),
        (OneProcess, *length, "--no-enable-chunked-prefill"),
    ):
        served = service(tmp_path, export, *options)
        try:
            answers.append(answers_with_options(served.complete, data["prompts"][25:28]))
        finally:
            served.stop()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("missing", ["kv_transfer_config", "hf_overrides", "enable_prefix_caching"])
def test_a_model_without_its_settings_does_not_start(missing, expected, tmp_path):
    data = expected("tiny")
    engine = one_process(data["folder"] / "pair", "LlamaForCausalLM") | {"max_model_len": 256}
    del engine[missing]
    done, result = run_offline(tmp_path, data, **engine)
    assert result is None
    assert "ulskip_vllm.pair_export.SetupError" in done.stderr


def one_process(export, architecture):
    """Return the settings of vLLM's `LLM` for one process."""
    return {
        "model": str(export / "prefill"),
        "kv_transfer_config": {
            "kv_connector": PROMPT_LENGTHS,
            "kv_connector_module_path": PROMPT_LENGTHS_MODULE,
            "kv_role": ROLES["serve"],
            "kv_connector_extra_config": {"export": str(export)},
        },
        "hf_overrides": {"architectures": [MODELS[architecture]]},
        "enable_prefix_caching": False,
    }
