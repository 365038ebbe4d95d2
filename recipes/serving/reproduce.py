"""Measure vLLM servers under load: the full model, the kept layers alone, drafting, one process,
and a pair.

    python recipes/serving/reproduce.py [--model smollm2-135m] [--ratio 2] [--work build/serving]

The recipe exports the model, starts all servers with the Python of `make vllm`, sends requests to
each in turns (`benchmarks/serve.py`) and ends the servers. Prompts are pieces of the bundled news
articles. It takes about a quarter of an hour on two cores, which should be idle otherwise. The page
goes to results/serving/load.md.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from transformers import AutoTokenizer

from ulskip_cli.core import environment
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.model_metadata import ASSETS
from ulskip_cli.experiments.record import Environment

SERVE = Path(__file__).parents[2] / "benchmarks" / "serve.py"
START_SECONDS = 600
# Tokens between two prompts of an article; no two begin alike, so no prefix cache helps.
STRIDE = 16
DRAFTS = 3
SERVERS = ("full", "kept", "drafting", "one-process", "pair")
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Servers:
    """Servers that end together."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.started: list[tuple[str, subprocess.Popen[bytes], str]] = []

    def start(self, name: str, *command: object) -> str:
        """Start a server on a free port by a command, which gets --port; return its URL. Its output
        goes to NAME.log in the work folder.
        """
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        log = (self.work / f"{name}.log").open("w")
        words = [*map(str, command), "--port", port]
        environ = {**os.environ, **ENVIRONMENT}
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env=environ, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        self.started.append((name, process, url))
        return url

    def wait(self) -> None:
        """Wait until all servers answer; exit if one ends before, or after START_SECONDS."""
        end = time.monotonic() + START_SECONDS
        for name, process, url in self.started:
            while True:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server {name} did not start; see {self.work / name}.log")
                with (
                    contextlib.suppress(OSError),  # no connection yet
                    urllib.request.urlopen(f"{url}/health", timeout=5),
                ):
                    break
                time.sleep(1)

    def stop(self) -> None:
        """End all servers."""
        for _, process, _ in self.started:
            with contextlib.suppress(ProcessLookupError):
                # vLLM starts further processes, which are in the group of the first.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def write_prompts(model: Path, file: Path, length: int) -> None:
    """Write pieces of `length` tokens of articles as a JSON list of lists of token ids."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = []
    for line in (ASSETS / "cnn_dm_sample.jsonl").read_text("utf-8").splitlines():
        ids = tokenizer(json.loads(line)["article"])["input_ids"]
        prompts += [ids[start : start + length] for start in range(0, len(ids) - length, STRIDE)]
    file.write_text(json.dumps(prompts))


def export(options: argparse.Namespace) -> Path:
    """Export the pair unless it exists; return its folder."""
    pair: Path = options.work / f"{options.model}-{options.ratio:g}x"
    if not pair.exists():
        words = [
            f"model={options.model}",
            f"ratio={options.ratio}",
            "model.dtype=bfloat16",
            "--to",
            str(pair),
        ]
        subprocess.run([sys.executable, "-m", "ulskip_cli", "export", *words], check=True)
    return pair


def start(servers: Servers, names: list[str], pair: Path, python: Path) -> list[str]:
    """Start the servers `names` of SERVERS, and wait for them; return them as arguments of
    `benchmarks/serve.py`. `python` is that of the environment with vLLM.
    """
    vllm = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    vllm += ["--generation-config", "vllm"]  # not the model's own sampling options
    tool = python.with_name("ulskip-vllm")
    length = ["--max-model-len", 1024]
    full = [*vllm, "--model", pair / "prefill", *length]
    draft = json.dumps(
        {"method": "draft_model", "model": str(pair), "num_speculative_tokens": DRAFTS}
    )
    commands = {
        "full": full,
        "kept": [*vllm, "--model", pair, *length],
        "drafting": [*full, "--speculative-config", draft],
        "one-process": [tool, "serve", pair, *length],
    }
    urls = {}
    for name in names:
        if name != "pair":
            urls[name] = servers.start(name, *commands[name])
            continue
        # Two servers, and a proxy that knows their URLs.
        proxy = [tool, "proxy"]
        for role in ("prefill", "decode"):
            handoffs = ["--handoff-dir", servers.work / "handoffs"]
            proxy += [f"--{role}", servers.start(role, tool, role, pair, *handoffs, *length)]
        urls[name] = servers.start(name, *proxy)
    servers.wait()
    return [f"{name}={url}" for name, url in urls.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ratio", type=float, default=2)
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(".venv-vllm/bin/python"),
        help="of the environment with vLLM",
    )
    parser.add_argument("--work", type=Path, default=Path("build/serving"))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1, help="per client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    if not options.python.exists():
        raise SystemExit(
            f"expected the Python of an environment with vLLM, got {options.python}; run: make vllm"
        )
    facts = {**environment.versions(), **environment.machine()}
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    pair, prompts = export(options), options.work / "prompts.json"
    write_prompts(pair, prompts, options.prompt_tokens)
    servers = Servers(options.work)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    try:
        urls = start(servers, options.servers, pair, options.python.absolute())
        words = [sys.executable, str(SERVE), *urls]
        for key in ("requests", "rounds", "new-tokens"):
            words += [f"--{key}", str(getattr(options, key.replace("-", "_")))]
        words += ["--concurrency", *map(str, options.concurrency), "--prompts", str(prompts)]
        table = subprocess.run(
            [*words, "--to", str(options.work / "load.json")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        servers.stop()
    record = json.loads((pair / "ulskip_export.json").read_text("utf-8"))
    kept, layers = len(record["kept_layers"]), record["num_layers"]
    here = Environment(**facts)
    parts = [
        "# vLLM servers under load",
        (
            f"{options.model} in bfloat16, {kept} of {layers} layers. Every server answered the"
            f" same requests in turns: {options.prompt_tokens} prompt tokens and"
            f" {options.new_tokens} new ones, {options.requests} for each client, at least four,"
            f" after one that does not count; medians of {options.rounds} rounds. Of the first"
            " server: requests/s as a multiple of those of the server in the first line in the same"
            " round, the geometric mean of the rounds with its 95% interval. Full: all layers."
            " Kept: the export alone."
            f" Drafting: the full model with the export as its draft model, {DRAFTS} tokens at a"
            " time. One process: prompts through all layers, generated tokens through the kept"
            " ones, without the compilation that the others have. Pair: a prefill server with all"
            " layers, a decode server with the kept ones, and the proxy."
        ),
        table.stdout.strip(),
        (
            f"ulskip {here.version}, vLLM {_version(options.python)}; {here.processor},"
            f" {here.instruction_set}, {os.cpu_count()} CPUs, which all servers and clients share."
        ),
    ]
    write_atomic(Path("results/serving/load.md"), "\n\n".join(parts) + "\n")
    print(table.stdout)


def _version(python: Path) -> str:
    words = [str(python), "-c", "import vllm; print(vllm.__version__)"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
