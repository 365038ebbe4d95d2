"""A checkpoint as a GGUF file, for llama.cpp and what is built on it; Llama-shaped models with byte-level BPE only."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.errors import RunError, UsageError
from ulskip_cli.export.check import prompts
from ulskip_cli.export.tensors import Source

_LOGIT_TOLERANCE = 1e-3  # of the largest: the file keeps numbers such as epsilon in float32
_MODEL_TYPES = ("llama", "mistral")
_KINDS = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
_FILE_TYPES = {
    torch.float32: gguf.LlamaFileType.ALL_F32,
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write(folder: Path, file: Path, name: str) -> None:
    """Write an exported folder as one file, a tensor in memory at a time.

    Args:
        folder: config.json, tokenizer.json and safetensors.
        file: to write.
        name: of the model, for who looks into the file.

    Raises:
        UsageError: the model is not of a kind that is known here.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    _refuse(config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(name)
    writer.add_description("exported by ulskip")
    _add_shape(writer, config)
    _add_tokenizer(writer, tokenizer, config["vocab_size"])
    source = Source(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    found = {old: names.get_name(old, try_suffixes=(".weight", ".bias")) for old in source.files}
    lost = sorted(old for old, new in found.items() if new is None)
    if lost:
        raise UsageError(f"GGUF has no name for {lost[0]}; --format hf exports this model")
    kinds: dict[torch.dtype, int] = {}
    for old, new in found.items():
        array, dtype = _array(source, old, config)
        kinds[dtype] = kinds.get(dtype, 0) + array.nbytes
        writer.add_tensor_info(new, array.shape, array.dtype, array.nbytes, _KINDS[dtype])
    writer.add_file_type(_FILE_TYPES[max(kinds, key=lambda dtype: kinds[dtype])])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for old in found:
        writer.write_tensor_data(_array(source, old, config)[0])
    writer.close()


def check(file: Path, view: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Load the file back and hold it against the view, whose weights become float32; what was found, in words.

    Raises:
        RunError: a weight, a logit or a token of the vocabulary differs.
    """
    options: dict[str, Any] = {"gguf_file": file.name}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that cannot be turned off
        back = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options).eval()
    expected, tensors = view.state_dict(), back.state_dict()
    for name, tensor in expected.items():
        if name not in tensors or not torch.equal(tensor.float().cpu(), tensors[name].float()):
            raise RunError(f"{name} read back from GGUF is not the view's, so the file was not kept")
    vocabulary, own = AutoTokenizer.from_pretrained(file.parent, **options).get_vocab(), tokenizer.get_vocab()
    lost = {token for token, at in own.items() if vocabulary.get(token) != at}
    if lost:
        raise RunError(f"{len(lost)} tokens read back from GGUF are not the tokenizer's, so the file was not kept")
    ids, mask = prompts(view)
    with torch.inference_mode():
        one, other = (model(input_ids=ids, attention_mask=mask).logits for model in (view.float(), back.to(ids.device)))
    gap = float((one - other)[mask.bool()].abs().max() / one.abs().max())
    if not gap < _LOGIT_TOLERANCE:
        raise RunError(f"logits of the model read back from GGUF differ from the view's by {gap:.1%}, so the file was not kept")
    return f"read back, all {len(expected)} tensors equal the view's and {len(own)} tokens the tokenizer's"


def _refuse(config: dict[str, Any]) -> None:
    """Anything that the architecture's name in GGUF does not imply."""
    kind = config.get("model_type")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    reasons = {
        f"its type is {kind}, not {' or '.join(_MODEL_TYPES)}": kind not in _MODEL_TYPES,
        "its rotary embedding is scaled": scaled,
        "its linear layers have biases": config.get("attention_bias") or config.get("mlp_bias"),
        "its attention slides over a window": kind == "mistral" and config.get("sliding_window"),
        f"its activation is {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"--format gguf does not serve this model: {reason}; --format hf does")


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Tokens, merges and special ids."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE" or spec["model"].get("byte_fallback") or spec.get("normalizer"):
        raise UsageError("--format gguf knows tokenizers of byte-level BPE without a normalizer; --format hf exports any")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, at in tokenizer.get_vocab().items():
        if at < vocab_size:
            tokens[at], types[at] = token, gguf.TokenType.NORMAL
    for added in spec["added_tokens"]:
        if added["id"] < vocab_size:
            types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(spec["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in spec["model"]["merges"]])
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for key, value in {**ids, "unk": tokenizer.unk_token_id}.items():
        if value is not None:
            getattr(writer, f"add_{key}_token_id")(value)
    encoded = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(encoded) and encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(encoded) and encoded[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(spec: dict[str, Any] | None) -> str:
    """The name by which llama.cpp knows how text is cut into words before it is merged.

    Raises:
        UsageError: it has none that is known here.
    """
    parts: list[dict[str, Any]] = spec["pretokenizers"] if spec and spec["type"] == "Sequence" else [spec or {}]
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and parts[0]["pattern"].get("Regex") == _LLAMA3:
        return "llama-bpe"
    raise UsageError(
        "--format gguf knows no name for the way in which this tokenizer cuts text into words; --format hf does not ask"
    )


def _array(source: Source, name: str, config: dict[str, Any]) -> tuple[np.ndarray[Any, Any], torch.dtype]:
    """A tensor as GGUF holds it: vectors in float32, queries and keys with their rotary halves interleaved."""
    tensor = source.read({name: name}, None)[name]
    heads = config["num_attention_heads"]
    for part, count in (("q_proj", heads), ("k_proj", config.get("num_key_value_heads") or heads)):
        if f".{part}." in name:
            tensor = _interleaved(tensor, count)
    if tensor.dim() == 1:
        tensor = tensor.float()
    dtype, tensor = tensor.dtype, tensor.contiguous()
    return (tensor.view(torch.uint16) if dtype == torch.bfloat16 else tensor).numpy(), dtype


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """[heads x head_dim, width] with pairs that rotate together side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
