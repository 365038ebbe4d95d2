"""Generate with vLLM in a process of its own: `python worker.py SETTINGS`, with a Python that has
vLLM.

Each line on the standard input is a job and each line on the standard output a reply, both in JSON.
The file imports nothing of ulskip, which need not be installed beside vLLM.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPORT_SECONDS = 0.5  # between two reports of progress


def main() -> None:
    """Load a model, then answer jobs until the standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to the standard output
    sys.path.remove(str(Path(__file__).parent))  # where modules of ulskip have names of packages

    def reply(**content: Any) -> None:
        print(json.dumps(content), file=replies, flush=True)

    import vllm
    from vllm.platforms import current_platform

    llm = vllm.LLM(skip_tokenizer_init=True, enable_prefix_caching=False, **json.loads(sys.argv[1]))
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    build = [current_platform.device_type, f"compilation={getattr(mode, 'name', mode)}"]
    reply(package="vllm", version=vllm.__version__, build=build)
    for line in sys.stdin:
        job = json.loads(line)
        if job.pop("kind") == "losses":
            reply(losses=losses(llm, **job))
        else:
            reply(
                **generate(llm.llm_engine, on_tokens=lambda tokens: reply(progress=tokens), **job)
            )


def generate(
    engine: Any,
    prompts: Sequence[list[int]],
    length: int,
    stop_token_ids: Sequence[int],
    fixed_length: bool,
    on_tokens: Callable[[int], None],
) -> dict[str, Any]:
    """Generate greedily; return the tokens of each prompt, and the clock when all have a first
    token and at the end.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=0,
        max_tokens=length,
        min_tokens=length if fixed_length else 0,
        stop_token_ids=list(stop_token_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    tokens: list[list[int]] = [[] for _ in prompts]
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), {"prompt_token_ids": prompt}, sampling)
    waiting, first_at = len(prompts), 0.0
    reported = now = time.perf_counter()
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            row = tokens[int(output.request_id)]
            waiting -= not row
            row += output.outputs[0].token_ids
        if not waiting and not first_at:
            first_at = now
        if now - reported > REPORT_SECONDS:
            on_tokens(sum(map(len, tokens)))
            reported = now
    return {"tokens": tokens, "first_at": first_at, "end": now}


def losses(
    llm: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> list[list[float]]:
    """Return the cross-entropy of every token of the responses after their prompts."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    texts = [
        {"prompt_token_ids": [*prompt, *response]}
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    losses_of_rows = []
    for prompt, response, answer in zip(
        prompts, responses, llm.generate(texts, sampling, use_tqdm=False), strict=True
    ):
        places = answer.prompt_logprobs[len(prompt) :]
        losses_of_rows.append(
            [-place[token].logprob for place, token in zip(places, response, strict=True)]
        )
    return losses_of_rows


if __name__ == "__main__":
    main()
