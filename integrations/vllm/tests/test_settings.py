"""Invalid settings end with one line and exit code 2, before vLLM starts."""

import json
import os
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ulskip_vllm import TESTED_VLLM
from ulskip_vllm.handoff import HandoffError, HandoffFolder, make_private
from ulskip_vllm.pair_export import RECORD, SetupError, check_version, weights_digest
from ulskip_vllm.proxy import prefill_body

TOOL = Path(sys.executable).with_name("ulskip-vllm")
NAME = "ab" * 16
SHAPES, CPU = [(2, 3), (2, 3)], torch.device("cpu")


@pytest.fixture
def pair(tmp_path):
    """A folder as `ulskip export` writes it, of 4 layers, with tensors of a few bytes."""
    folder = tmp_path / "pair"
    for path, layers in ((folder, [0, 3]), (folder / "prefill", [0, 1, 2, 3])):
        path.mkdir()
        config = {
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": len(layers),
            "num_key_value_heads": 3,
        }
        (path / "config.json").write_text(json.dumps(config))
        save_layers(path, layers)
    write(
        folder,
        {
            "num_layers": 4,
            "kept_layers": [0, 3],
            "prefill": "prefill",
            "weights_digest": digests(folder),
        },
    )
    return folder


def save_layers(folder, values):
    """Save one tensor for each layer, with the given value."""
    tensors = {
        f"model.layers.{i}.weight": torch.tensor([float(value)]) for i, value in enumerate(values)
    }
    save_file({**tensors, "model.norm.weight": torch.ones(2)}, folder / "model.safetensors")


def digests(folder):
    return {"decode": weights_digest(folder), "prefill": weights_digest(folder / "prefill")}


def write(folder, record):
    (folder / RECORD).write_text(json.dumps(record))


def change(folder, **values):
    write(folder, json.loads((folder / RECORD).read_text()) | values)


def run(*arguments):
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_command_contains_the_settings_of_the_role(role, pair):
    code, printed, error = run(
        role, pair, "--print-command", "--handoff-dir", "/dev/shm/here", "--dtype", "float32"
    )
    assert (code, error) == (0, "")
    assert (
        ("FirstToken" in printed) == ("--no-enable-prefix-caching" in printed) == (role == "decode")
    )
    assert f"{pair}/prefill" in printed if role == "prefill" else f"--model {pair} " in printed
    for part in ("/dev/shm/here", "--dtype float32", "--served-model-name pair"):
        assert part in printed


def test_the_command_of_one_process(pair):
    code, printed, error = run("serve", pair, "--print-command", "--dtype", "float32", "-pp", "1")
    assert (code, error) == (0, "")
    words = shlex.split(printed)
    value = dict(pairwise(words))
    assert (
        value["--model"] == f"{pair}/prefill"
        and value["--port"] == "8000"
        and value["--served-model-name"] == "pair"
    )
    assert json.loads(value["--hf-overrides"]) == {"architectures": ["KeptLayersLlamaForCausalLM"]}
    transfer = json.loads(value["--kv-transfer-config"])
    assert (transfer["kv_connector"], transfer["kv_connector_extra_config"]) == (
        "PromptLengthsConnector",
        {"export": str(pair)},
    )
    assert {
        "--no-enable-prefix-caching",
        "--enforce-eager",
        "ulskip_vllm.request_check.RequestCheck",
    } <= set(words)


def test_the_printed_command_is_one_of_a_shell(pair):
    folder = pair.rename(pair.with_name("a'b; touch $HOME `c`"))
    code, printed, _ = run("decode", folder, "--print-command", "--host=0.0.0.0")
    words = shlex.split(printed)
    assert code == 0 and words[words.index("--model") + 1] == str(folder)
    assert "--host" not in words and "--host=0.0.0.0" in words
    assert "--host 127.0.0.1" in run("decode", folder, "--print-command")[1]


def refused(*arguments):
    code, printed, error = run(*arguments, "--print-command")
    assert (code, printed, error.count("\n")) == (2, "", 1), error
    return error


def test_a_folder_without_a_pair(pair, tmp_path):
    assert RECORD in refused("prefill", tmp_path)
    change(pair, prefill=None)
    assert "expected a pair" in refused("decode", pair)


COMMON = [
    "--speculative-config={}",
    "-sc={}",
    "--enable_lora",
    "-pp=2",
    "--pipeline-parallel-size=2",
    "-dcp=2",
    "-pcp=2",
]
COMMON += [
    "--kv-transfer-config={}",
    "--kv-transfer-config.kv_role=kv_both",
    "--model=other",
    "--spec-method=ngram",
]
OF_A_ROLE = {
    "prefill": [],
    "decode": ["--enable-prefix-caching", "--async-scheduling"],
    "serve": ["--enable-prefix-caching", "--hf-overrides={}", "--no-enforce-eager", "--enable-dbo"],
}


@pytest.mark.parametrize(
    ("role", "option"), [(role, one) for role, own in OF_A_ROLE.items() for one in (*COMMON, *own)]
)
def test_options_that_a_role_does_not_support(role, option, pair):
    message = refused(role, pair, *option.split("="))
    assert f"`ulskip-vllm {role}` does not support --" in message
    assert refused(role, pair, option) == message


@pytest.mark.parametrize("architectures", [["OPTForCausalLM"], [], None])
def test_one_process_supports_the_llama_family_only(architectures, pair):
    file = pair / "prefill" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": architectures}))
    message = refused("serve", pair)
    assert "Qwen3ForCausalLM" in message and "two servers" in message
    assert run("prefill", pair, "--print-command")[0] == 0


@pytest.mark.parametrize("values", [[0, 9], [9, 3], [0, 2]])
def test_one_process_refuses_kept_layers_with_weights_of_their_own(values, pair):
    save_layers(pair, values)
    change(pair, weights_digest=digests(pair))
    assert "two servers: ulskip-vllm prefill, decode and proxy" in refused("serve", pair)
    assert run("decode", pair, "--print-command")[0] == 0


def test_one_process_refuses_folded_patches(expected):
    assert "one set of weights" in refused("serve", expected("tiny")["folder"] / "folded")


@pytest.mark.parametrize("layers", [[0, 1, 3], [0]])
def test_kept_layers_that_are_not_those_of_the_config(layers, pair):
    change(pair, kept_layers=layers)
    for role in ("decode", "serve"):
        assert f"expected {len(layers)} layers" in refused(role, pair)


@pytest.mark.parametrize("layers", [[3, 0], [0, 4], [0, 0], []])
def test_kept_layers_that_are_no_schedule(layers, pair):
    change(pair, kept_layers=layers)
    assert str(layers) in refused("decode", pair)


@pytest.mark.parametrize(
    ("role", "weights"),
    [("prefill",) * 2, ("decode",) * 2, ("serve", "prefill"), ("serve", "decode")],
)
def test_weights_of_another_base(role, weights, pair):
    save_layers(*((pair / "prefill", [9, 9, 9, 9]) if weights == "prefill" else (pair, [9, 9])))
    assert f"expected the {weights} weights" in refused(role, pair)


@pytest.mark.parametrize("size", ["2", "4"])
def test_a_tensor_parallel_size_that_does_not_divide_the_heads(size, pair):
    for given in (["--tensor-parallel-size", size], [f"-tp={size}"]):
        assert f"got {size}" in refused("prefill", pair, *given)
    assert run("prefill", pair, "--print-command", "-tp", "3")[0] == 0


def test_an_untested_version_of_vllm():
    check_version(f"{TESTED_VLLM[0]}.9", allowed=False)
    check_version("9.9", allowed=True)
    with pytest.raises(SetupError, match=r"9\.9"):
        check_version("9.9", allowed=False)


def test_hand_offs_are_read_back_and_expire(tmp_path):
    folder = HandoffFolder(tmp_path, max_age_seconds=100)
    layers = [torch.randn(2, 3), torch.randn(2, 3)]
    folder.write(NAME, layers, {"pair": "a"})
    assert all(
        map(torch.equal, folder.read(NAME, SHAPES, torch.float32, {"pair": "a"}, CPU), layers)
    )
    with pytest.raises(HandoffError, match="pair b"):
        folder.read(NAME, SHAPES, torch.float32, {"pair": "b"}, CPU)
    with pytest.raises(HandoffError, match="1-of-2"):
        HandoffFolder(tmp_path, 100, 1, 2).read(NAME, SHAPES, torch.float32, {"pair": "a"}, CPU)
    (file,) = tmp_path.iterdir()
    other = tmp_path / "notes.txt"
    other.touch()
    for path in (file, other):
        os.utime(path, (time.time() - 200,) * 2)
    folder.keep(NAME)
    folder.remove_expired()
    assert file.is_file()
    os.utime(file, (time.time() - 200,) * 2)
    folder.remove_expired()
    assert list(tmp_path.iterdir()) == [other]


def test_a_truncated_hand_off_is_an_error(tmp_path):
    folder = HandoffFolder(tmp_path, 100)
    folder.write(NAME, [torch.randn(8, 8)], {})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(HandoffError, match=NAME):
        folder.read(NAME, [(8, 8)], torch.float32, {}, CPU)


@pytest.mark.parametrize(
    "stored",
    [
        [torch.zeros(2, 3)],
        [torch.zeros(2, 3), torch.zeros(1, 3)],
        [torch.zeros(2, 3), torch.zeros(2, 3).half()],
    ],
)
def test_a_hand_off_of_other_blocks_is_an_error(stored, tmp_path):
    folder = HandoffFolder(tmp_path, 100)
    folder.write(NAME, stored, {})
    with pytest.raises(HandoffError):
        folder.read(NAME, SHAPES, torch.float32, {}, CPU)


def test_a_folder_that_others_can_read_or_replace_is_refused(tmp_path, monkeypatch):
    folder = make_private(tmp_path / "new")
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(SetupError, match="--handoff-dir"):
        make_private(tmp_path / "link")
    folder.chmod(0o755)
    with pytest.raises(SetupError, match="chmod 700"):
        make_private(folder)
    folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(SetupError, match="of this user"):
        make_private(folder)


def test_the_request_for_the_first_token():
    body = {
        "stream": True,
        "stream_options": {},
        "max_completion_tokens": 9,
        "max_tokens": 9,
        "min_tokens": 5,
        "stop": ["a"],
    }
    first = prefill_body(body)
    assert first == {
        "stream": False,
        "kv_transfer_params": {"handoff": True},
        "max_tokens": 1,
        "min_tokens": 1,
        "stop": ["a"],
    }
