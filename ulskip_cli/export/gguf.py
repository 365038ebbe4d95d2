"""Export of the kept layers as a GGUF file for llama.cpp: Llama, Mistral and Qwen models with byte-
level BPE.
"""

import json
from pathlib import Path

import gguf
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.export.checkpoint import DELETED, load_kept, logits_of, reason_not_to_compare
from ulskip_cli.export.export_run import ResolvedExport
from ulskip_cli.inference.gguf_file import DTYPES, GgufTensors, architecture, write_model
from ulskip_cli.inference.loading import load_tokenizer
from ulskip_cli.inference.model_files import counting_tensors

# As a share of the largest logit; the file stores constants such as epsilon in float32.
_LOGIT_TOLERANCE = 1e-3
_NFC = {"type": "NFC"}  # of Qwen; llama.cpp does not normalize, as most texts are in this form
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names by the regular expression of the pre-tokenizer
_PATTERNS = {f"{_WORDS}{{1,3}}{_OTHERS}": "llama-bpe", f"{_WORDS}{_OTHERS}": "qwen2"}


def export_gguf(export: ResolvedExport, file: Path, progress: ProgressCallback) -> JsonObject:
    """Write the kept layers as a GGUF file. If memory and the request allow it, compare the file
    with the view; raise RunError if they differ.
    """
    plan, exported = export.plan, load_kept(export, progress)
    tokenizer = load_tokenizer(export.config.model)
    assert tokenizer is not None
    progress.phase("write gguf")
    tensors = {name: tensor.cpu() for name, tensor in exported.view.state_dict().items()}
    if exported.view.config.tie_word_embeddings:  # then llama.cpp uses the embeddings as the head
        del tensors["lm_head.weight"]
    writer = gguf.GGUFWriter(file, architecture(exported.config))
    writer.add_name(f"{Path(export.config.model.label).name}, {plan.summary}")
    writer.add_description("exported by ulskip")
    _add_tokenizer(writer, tokenizer, exported.config["vocab_size"])
    parameters, main_type = write_model(writer, GgufTensors(tensors, exported.config))
    # the file's weights and a copy of the view's, both in float32
    why_not = reason_not_to_compare(export, 2 * 4 * parameters)
    if why_not:
        checked = f"the file was not compared with the kept layers{why_not}"
    else:
        progress.phase("check gguf")
        checked = compare_with_view(file, exported.view, tokenizer)
    return {
        "prompt_layers": "kept",
        "skip_adapter": export.adapter_folder,
        "parameters": parameters,
        "total_bytes": file.stat().st_size,
        "dtype": str(DTYPES[main_type]).removeprefix("torch."),
        "checked": checked,
    }


def compare_with_view(file: Path, view: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Compare tensors, vocabulary and logits of the file with those of the view, which becomes
    float32; describe the result, or raise RunError if they differ.
    """
    options = {"gguf_file": file.name}
    with counting_tensors(lambda done: None):  # in place of transformers' progress bar
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, **options
        ).eval()
    expected, tensors = view.state_dict(), loaded.state_dict()
    for name, tensor in expected.items():
        if name not in tensors or not torch.equal(tensor.float().cpu(), tensors[name].float()):
            raise RunError(
                f"expected the source's values of {name} in the GGUF file, got other values;"
                f" {DELETED}"
            )
    vocabulary = AutoTokenizer.from_pretrained(file.parent, **options).get_vocab()
    wanted = tokenizer.get_vocab()
    num_wrong = sum(vocabulary.get(token) != token_id for token, token_id in wanted.items())
    if num_wrong:
        raise RunError(
            f"expected the tokenizer's {len(wanted)} tokens in the GGUF file, got {num_wrong} wrong"
            f" ones; {DELETED}"
        )
    wanted_logits, logits = logits_of(view.float(), loaded.to(view.device))
    difference = float((wanted_logits - logits).abs().max() / wanted_logits.abs().max())
    if not difference < _LOGIT_TOLERANCE:
        raise RunError(
            "expected the GGUF file to compute the logits of the kept layers, but they differ by"
            f" {difference:.1%} of the largest logit; {DELETED}"
        )
    return (
        f"transformers loads the file; its {len(expected)} tensors and {len(wanted)} tokens equal"
        " those of the source"
    )


def pre_tokenizer_name(spec: JsonObject | None) -> str:
    """Return llama.cpp's name for a pre-tokenizer of tokenizer.json; raise UsageError
    without one.
    """
    spec = spec or {}
    steps = spec["pretokenizers"] if spec.get("type") == "Sequence" else [spec]
    types = [step.get("type") for step in steps]
    splits_words = steps[-1].get("use_regex", True)  # by the regular expression of GPT-2
    if types == ["ByteLevel"] and splits_words:
        return "gpt-2"
    if types == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and splits_words:
        return "smollm"
    pattern = steps[0].get("pattern", {}).get("Regex")
    if types == ["Split", "ByteLevel"] and pattern in _PATTERNS:
        return _PATTERNS[pattern]
    raise UsageError(f"--format gguf does not support the pre-tokenizer {types}; use --format hf")


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> None:
    """Write a tokenizer into the header; raise UsageError if llama.cpp has no such one.
    `vocab_size`, the number of embeddings, can be larger or smaller than that of tokens.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())  # as in tokenizer.json
    model, normalizer = spec["model"], spec.get("normalizer")
    is_byte_level = model["type"] == "BPE" and not model.get("byte_fallback")
    if not is_byte_level or normalizer not in (None, _NFC):
        raise UsageError(
            "--format gguf supports only byte-level BPE tokenizers, without a normalizer or with"
            " NFC; use --format hf"
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, token_id in tokenizer.get_vocab().items():
        if token_id < vocab_size:
            tokens[token_id], types[token_id] = token, gguf.TokenType.NORMAL
    control, user_defined = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
    for added in spec["added_tokens"]:
        if added["id"] < vocab_size:
            types[added["id"]] = control if added["special"] else user_defined
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(spec["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Older files have merges as "a b", newer ones as ["a", "b"].
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges)
    for name in ("bos", "eos", "pad", "unk"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    encoded = tokenizer("a").input_ids  # shows whether the tokenizer adds BOS and EOS
    writer.add_add_bos_token(bool(encoded) and encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(encoded) and encoded[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
