"""Two servers and the proxy: tokens, continuous batching, chunked prefill, preemption, stop
strings, seeds, failures.
"""

import json
import shutil
import time
from functools import partial

import pytest
from conftest import Pair, answers_with_options, assert_equal_but_ties, tokens_of

from ulskip_vllm.pair_export import RECORD, weights_digest

# The first pair has chunked prefill, and a KV cache of few blocks on the decode server, which
# forces preemptions.
SMALL = ["--block-size", "32", "--max-model-len", "192", "--max-num-seqs", "8"]
SETTINGS = {
    "chunked": {
        "prefill": [*SMALL, "--max-num-batched-tokens", "16", "--enable-chunked-prefill"],
        "decode": [*SMALL, "--num-gpu-blocks-override", "7"],
    },
    "plain": {
        "prefill": ["--no-enable-chunked-prefill"],
        "decode": ["--no-enable-chunked-prefill"],
    },
}


@pytest.fixture(scope="module", params=SETTINGS)
def tiny(request, expected, tmp_path_factory):
    """The servers of the embedded model, with the expected tokens."""
    data = expected("tiny")
    pair = Pair(tmp_path_factory.mktemp("tiny"), data["folder"] / "pair", **SETTINGS[request.param])
    pair.setting = request.param
    yield pair, data
    pair.stop()


def test_the_tokens_are_those_of_two_phases(tiny):
    pair, data = tiny
    answers = pair.complete_all(data, clients=12)  # requests arrive while others decode
    preempted = pair.decode.metric("vllm:num_preemptions_total")
    label = f"tiny: pair, {pair.setting}, 12 clients, {preempted:.0f} preemptions"
    assert_equal_but_ties(list(map(tokens_of, answers)), data["pair"], label)
    assert (preempted > 0) == (pair.setting == "chunked")
    assert [body["usage"]["prompt_tokens"] for _, body in answers] == list(
        map(len, data["prompt_ids"])
    )
    assert [body["usage"]["completion_tokens"] for _, body in answers] == [
        len(tokens_of(answer)) for answer in answers
    ]
    assert list(pair.handoffs.iterdir()) == []  # all are deleted after use


def test_streaming_gives_the_same_text(tiny):
    pair, data = tiny
    _, whole = pair.complete(data["prompt_ids"][3], max_tokens=24)
    status, events = pair.complete(data["prompt_ids"][3], max_tokens=24, stream=True)
    assert status == 200 and len(events) > 3
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]


def test_a_stop_string_ends_the_answer(tiny):
    pair, data = tiny
    _, whole = pair.complete(data["prompt_ids"][5], max_tokens=24)
    text = whole["choices"][0]["text"]
    words = text.split()
    for stop in (words[0][:2], words[2]):  # in the first token, and later
        _, stopped = pair.complete(data["prompt_ids"][5], max_tokens=24, stop=[stop])
        assert stopped["choices"][0]["text"] == text[: text.index(stop)]
        assert stopped["choices"][0]["stop_reason"] == stop


def test_options_of_one_token(tiny):
    pair, data = tiny
    ids, expected = data["prompt_ids"][1], data["pair"]["tokens"][1]
    assert tokens_of(pair.complete(ids, max_tokens=1)) == expected[:1]
    assert tokens_of(pair.complete(ids, max_tokens=4, min_tokens=3)) == expected[:4]
    assert tokens_of(pair.complete(ids, max_tokens=6, stop_token_ids=[expected[2]])) == expected[:3]


def test_sampling_with_a_seed_is_repeatable(tiny):
    pair, data = tiny
    options = {"temperature": 1.5, "max_tokens": 16}
    one, two, other = (
        tokens_of(pair.complete(data["prompt_ids"][7], seed=seed, **options)) for seed in (3, 3, 4)
    )
    assert one == two != other
    first = tokens_of(
        pair.complete(
            data["prompt_ids"][7], url=pair.prefill.url, seed=3, temperature=1.5, max_tokens=1
        )
    )
    assert one[:1] == first


@pytest.mark.parametrize(
    "option",
    [{"n": 2}, {"logprobs": 1}, {"echo": True}, {"prompt": ["a", "b"]}, {"use_beam_search": True}],
)
def test_unsupported_options_are_refused(tiny, option):
    pair, data = tiny
    (name,) = option
    status, body = pair.complete(**{"prompt": data["prompt_ids"][0], **option})
    assert status == 400 and name in body["error"]["message"]


def test_a_decode_server_refuses_a_request_without_hand_off(tiny):
    pair, data = tiny
    status, body = pair.complete(data["prompt_ids"][0], url=pair.decode.url)
    assert status == 400 and "hand-off" in body["error"]["message"]


def test_an_unknown_hand_off_fails_and_the_server_goes_on(tiny):
    pair, data = tiny
    for token in (5, -3, 10**9):
        given = {"handoff": "0" * 32, "first_token": token, "num_prompt_tokens": 9}
        status, _ = pair.complete(
            data["prompt_ids"][0], url=pair.decode.url, kv_transfer_params=given
        )
        assert status == 500
    assert "expected the hand-off" in pair.decode.log.read_text()
    assert (
        tokens_of(pair.complete(data["prompt_ids"][0], max_tokens=48)) == data["pair"]["tokens"][0]
    )


def test_a_hand_off_of_another_prompt_fails(tiny):
    pair, data = tiny
    _, body = pair.complete(
        data["prompt_ids"][0],
        url=pair.prefill.url,
        max_tokens=1,
        kv_transfer_params={"handoff": True},
    )
    status, _ = pair.complete(
        data["prompt_ids"][1], url=pair.decode.url, kv_transfer_params=body["kv_transfer_params"]
    )
    assert status == 500
    assert "expected a hand-off with prompt" in pair.decode.log.read_text()


def test_a_client_that_disconnects_ends_its_request(tiny):
    pair, data = tiny
    before = pair.decode.metric("vllm:generation_tokens_total")
    events = pair.stream(data["prompt_ids"][0], max_tokens=150, ignore_eos=True)
    assert next(events)["choices"]
    events.close()
    end = time.time() + 60
    while list(pair.handoffs.iterdir()):
        assert time.time() < end
        time.sleep(0.2)
    assert pair.decode.metric("vllm:generation_tokens_total") - before < 150
    assert (
        tokens_of(pair.complete(data["prompt_ids"][0], max_tokens=48)) == data["pair"]["tokens"][0]
    )


def test_the_prefill_server_answers_as_the_full_model(tiny):
    pair, data = tiny
    ids = data["prompt_ids"][2]
    assert (
        tokens_of(pair.complete(ids, url=pair.prefill.url, max_tokens=48))
        == data["full"]["tokens"][2]
    )


def test_a_killed_decode_server_gives_an_error_and_the_prefill_server_goes_on(tiny):
    pair, data = tiny
    events = pair.stream(data["prompt_ids"][0], max_tokens=150, ignore_eos=True)
    assert next(events)["choices"]
    pair.decode.kill()
    assert "decode server" in list(events)[-1]["error"]["message"]
    status, body = pair.complete(data["prompt_ids"][0], max_tokens=8)
    assert status == 502 and "decode server" in body["error"]["message"]
    ids = data["prompt_ids"][2]
    assert (
        tokens_of(pair.complete(ids, url=pair.prefill.url, max_tokens=48))
        == data["full"]["tokens"][2]
    )


def test_the_tokens_of_a_larger_model(expected, tmp_path):
    data = expected("smollm2-135m")
    pair = Pair(tmp_path, data["folder"] / "pair", ["--max-num-batched-tokens", "256"])
    try:
        answers = pair.complete_all(data, clients=8)
        longest = max(data["prompt_ids"], key=len)
        again = pair.complete(longest, max_tokens=data["max_new_tokens"])
        assert pair.prefill.metric("vllm:prefix_cache_hits_total") > 0
        assert pair.decode.metric("vllm:prefix_cache_hits_total") == 0
    finally:
        pair.stop()
    assert tokens_of(again) == tokens_of(answers[data["prompt_ids"].index(longest)])
    assert_equal_but_ties(
        list(map(tokens_of, answers)), data["pair"], "smollm2-135m: pair, 8 clients"
    )


def test_two_tensor_parallel_workers_for_each_server(expected, tmp_path):
    data = expected("tiny")
    options = ["--tensor-parallel-size", "2", "--max-model-len", "256"]
    pair = Pair(tmp_path, data["folder"] / "pair", options, options)
    try:
        answers = pair.complete_all(data, clients=8)
    finally:
        pair.stop()
    assert_equal_but_ties(
        list(map(tokens_of, answers)), data["pair"], "tiny: pair, tensor-parallel size 2"
    )


def test_a_pair_that_keeps_all_layers_answers_as_one_server(expected, tmp_path):
    """The full model as its own kept layers: every option must give the answer of one server,
    sampling included.
    """
    data = expected("smollm2-135m")
    source, both = data["folder"] / "pair" / "prefill", tmp_path / "pair"
    shutil.copytree(source, both)
    (both / "prefill").symlink_to(source)
    record = json.loads((data["folder"] / "pair" / RECORD).read_text())
    layers = list(range(record["num_layers"]))
    digests = dict.fromkeys(("prefill", "decode"), weights_digest(source))
    (both / RECORD).write_text(
        json.dumps({**record, "kept_layers": layers, "weights_digest": digests})
    )
    pair = Pair(tmp_path, both, ["--max-model-len", "1024"], ["--max-model-len", "1024"])
    try:
        prompts, full = data["prompts"][25:28], partial(pair.complete, url=pair.prefill.url)
        assert answers_with_options(pair.complete, prompts) == answers_with_options(full, prompts)
        chat = [{"role": "user", "content": "Name three rivers."}]
        asked = {
            "path": "/v1/chat/completions",
            "max_completion_tokens": 24,
            "seed": 1,
            "temperature": 1.0,
        }
        texts = [
            pair.complete(chat, server.url, **asked)[1]["choices"][0]["message"]
            for server in (pair.prefill, pair.proxy)
        ]
        assert texts[0] == texts[1] and texts[0]["content"]
    finally:
        pair.stop()
