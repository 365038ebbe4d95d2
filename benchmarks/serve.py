"""Load on OpenAI servers: requests/s, time to first token and time per output token, with all
servers measured in turns.

`python benchmarks/serve.py full=http://127.0.0.1:8300 pair=http://127.0.0.1:8000 --concurrency 1 8
32 --to load.json`

The table has medians of all rounds. Of the first server: requests/s as a multiple of those of the
first server in the same round, the geometric mean of all rounds with its 95% interval.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ulskip_cli.experiments.intervals import ratio_interval
from ulskip_cli.report.tables import markdown_table

MEASURED = ("requests_per_second", "seconds_to_first_token", "seconds_per_output_token")
HEADS = (
    *("server", "concurrency", "requests/s", "of the first server"),
    *("time to first token (ms)", "time per output token (ms)"),
)


def model_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        return str(json.load(answer)["data"][0]["id"])


def measure_request(
    url: str, model: str, prompt: list[int], new_tokens: int
) -> tuple[float, float]:
    """Return seconds to the first token and seconds per later token of one streamed answer; raise
    RuntimeError if the server reports an error, or does not send `new_tokens` tokens.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,  # to count tokens, of which an event can have several
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start, first, last, count = time.perf_counter(), 0.0, 0.0, 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']['message']}")
            last = time.perf_counter()
            first = first or last
            count += len(event["choices"][0].get("token_ids") or [])
    if count != new_tokens:
        raise RuntimeError(f"expected {new_tokens} tokens from {url}, got {count}")
    return first - start, (last - first) / (new_tokens - 1)


def measure(
    url: str, model: str, prompts: list[list[int]], concurrency: int, new_tokens: int
) -> dict[str, float]:
    """Send the prompts to a server, `concurrency` at a time, and return the values of MEASURED, of
    which the times are medians.
    """
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        times = list(
            pool.map(lambda prompt: measure_request(url, model, prompt, new_tokens), prompts)
        )
    seconds = time.perf_counter() - start
    values = len(prompts) / seconds, *map(statistics.median, zip(*times, strict=True))
    return dict(zip(MEASURED, values, strict=True))


def random_prompts(options: argparse.Namespace) -> Iterator[list[int]]:
    """Yield prompts of random tokens, equal in every call."""
    generator = random.Random(1)
    while True:
        yield [generator.randrange(2, options.vocabulary) for _ in range(options.prompt_tokens)]


def table(samples: list[dict[str, Any]], servers: list[str]) -> str:
    """Return the table of all samples; every round has one of each server and concurrency, with the
    values of MEASURED.
    """
    measured: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for sample in samples:
        measured.setdefault((sample["concurrency"], sample["server"]), []).append(sample)
    rate = MEASURED[0]
    lines = []
    for concurrency, server in itertools.product(
        dict.fromkeys(key[0] for key in measured), servers
    ):
        rounds = measured[concurrency, server]
        pairs = zip(rounds, measured[concurrency, servers[0]], strict=True)
        ratio = ratio_interval([sample[rate] / first[rate] for sample, first in pairs])
        of_first = "1" if server == servers[0] else ratio.text(".2f")
        medians = [statistics.median(sample[key] for sample in rounds) for key in MEASURED]
        seconds = (f"{1000 * median:.1f}" for median in medians[1:])
        lines.append([server, str(concurrency), f"{medians[0]:.2f}", of_first, *seconds])
    return markdown_table(HEADS, lines, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4, help="requests per client and round")
    parser.add_argument("--least-requests", type=int, default=4, help="at least so many per round")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--vocabulary", type=int, default=8000, help="prompts are random ids from 2 to this number"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        help="JSON file with a list of prompts as token ids, instead of random ones",
    )
    parser.add_argument("--to", type=Path, help="JSON file with all samples")
    options = parser.parse_args()
    servers = dict(server.split("=", 1) for server in options.servers)
    models = {name: model_of(url) for name, url in servers.items()}
    samples: list[dict[str, Any]] = []
    source = (
        iter(json.loads(options.prompts.read_text()))
        if options.prompts
        else random_prompts(options)
    )
    for round_number in range(-1, options.rounds):  # round -1 warms up
        for concurrency in options.concurrency:
            count = max(concurrency * options.requests, options.least_requests)
            prompts = [next(source) for _ in range(count + 1)]
            # In turns, so that a drift of the machine's speed favours no server.
            order = list(servers) if round_number % 2 else list(reversed(servers))
            for name in order:
                # The prompt that does not count warms caches.
                measure_request(servers[name], models[name], prompts[0], options.new_tokens)
                result = measure(
                    servers[name], models[name], prompts[1:], concurrency, options.new_tokens
                )
                print(
                    f"round {round_number} {name} x{concurrency}: {result}",
                    file=sys.stderr,
                    flush=True,
                )
                if round_number >= 0:
                    samples.append(
                        {
                            "server": name,
                            "concurrency": concurrency,
                            "round": round_number,
                            **result,
                        }
                    )
    if options.to:
        settings = {
            key: value
            for key, value in vars(options).items()
            if key not in ("to", "servers", "prompts")
        }
        options.to.write_text(
            json.dumps({"settings": settings, "samples": samples}, indent=1) + "\n"
        )
    print(table(samples, list(servers)))


if __name__ == "__main__":
    main()
