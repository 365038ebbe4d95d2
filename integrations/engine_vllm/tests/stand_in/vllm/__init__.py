"""A stand-in for vLLM, of which the worker uses this little. It answers with transformers, so it
needs no other environment.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

__version__ = "stand-in"


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: tuple = ()
    prompt_logprobs: int | None = None
    detokenize: bool = True
    output_kind: str = "cumulative"


class LLM:
    def __init__(self, model, max_model_len, max_num_seqs, dtype="bfloat16", **settings):
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        self.limits = max_num_seqs, max_model_len
        self.requests = []
        self.vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(mode="none"))

    @property
    def llm_engine(self):
        return self

    def add_request(self, name, prompt, sampling):
        ids = prompt["prompt_token_ids"]
        assert (
            len(self.requests) < self.limits[0] and len(ids) + sampling.max_tokens <= self.limits[1]
        )
        options = {
            "eos_token_id": list(sampling.stop_token_ids) or None,
            "min_new_tokens": sampling.min_tokens,
        }
        answer = self.model.generate(
            torch.tensor([ids]),
            do_sample=False,
            max_new_tokens=sampling.max_tokens,
            pad_token_id=0,
            **options,
        )
        self.requests.append((name, answer[0, len(ids) :].tolist()))

    def has_unfinished_requests(self):
        return any(tokens for _, tokens in self.requests)

    def step(self):
        outputs = [
            SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=[tokens.pop(0)])])
            for name, tokens in self.requests
            if tokens
        ]
        self.requests = [one for one in self.requests if one[1]]
        return outputs

    def generate(self, prompts, sampling, use_tqdm):
        return [
            SimpleNamespace(prompt_logprobs=self.logprobs(prompt["prompt_token_ids"]))
            for prompt in prompts
        ]

    @torch.inference_mode()
    def logprobs(self, ids):
        logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [
            None,
            *(
                {one: SimpleNamespace(logprob=float(logprobs[i, one]))}
                for i, one in enumerate(ids[1:])
            ),
        ]
