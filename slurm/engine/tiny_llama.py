"""Make tiny-llama: a Llama of 205,000 random weights, for tests of everything but the answers.

Run in the engine's environment: tiny_llama.py TARGET. The tokenizer is trained on the manual texts
that come with Python itself, so the result needs nothing but this machine.
"""

import hashlib
import json
import pydoc_data.topics
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ChatML's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(pydoc_data.topics.topics.values()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[2],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def weights() -> LlamaForCausalLM:
    """Return the random model; the same seed gives the same weights.

    The weights are spread ten times wider than usual: with the usual 0.02 and tied embeddings the
    model repeats one token for ever, and a test could not see a lost or a doubled one.
    """
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main(target: Path) -> None:
    """Write the model, its tokenizer and where it comes from."""
    weights().save_pretrained(target)
    tokenizer().save_pretrained(target)
    provenance = {
        "source": "random weights, seed 1; tokenizer trained on Python's pydoc topics",
        "licence": "Apache-2.0 (made by slurm/engine/tiny_llama.py; no third party's weights)",
        "sha256": hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest(),
    }
    (target / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
