"""Generate greedily with vLLM in one process: `python offline.py JOB.json RESULT.json`."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(dtype="float32", enforce_eager=True, disable_log_stats=False, **job["engine"])
    sampling = SamplingParams(temperature=0, max_tokens=job["max_new_tokens"])
    answers = llm.generate(
        [{"prompt_token_ids": ids} for ids in job["prompt_ids"]], sampling, use_tqdm=False
    )
    metrics = {
        metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")
    }
    result = {
        "tokens": [list(answer.outputs[0].token_ids) for answer in answers],
        "metrics": metrics,
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
