"""What must a reader know about the demo model: its text, its licence, its figures, how to make it again?"""

from __future__ import annotations

from dataclasses import dataclass

from hjgc.models.config import DecoderConfig


@dataclass(frozen=True)
class Facts:
    """What a training run measured; bits are per byte of UTF-8, sizes count bytes or tokens."""

    config: DecoderConfig
    parameters: int
    python: str
    torch: str
    device: str
    corpus_digest: str
    documents: int
    corpus_bytes: int
    training_bytes: int
    training_tokens: int
    validation_bytes: int
    held_out_bytes: int
    held_out_tokens: int
    steps: int
    best_step: int
    tokens_per_step: int
    validation_bits: float
    held_out_bits: float
    unigram_bits: float
    prompts: tuple[str, ...]
    samples: tuple[str, ...]


def write_card(f: Facts) -> str:
    """The text of `README.md`."""
    c = f.config
    samples = "\n\n".join(f"```text\n{sample.strip()}\n```" for sample in f.samples)
    return f"""# The demo model

A LLaMA-architecture decoder of {f.parameters / 1e6:.2f} million parameters, trained from scratch on the prose that
ships with Python. It is there to be run, not to be believed: it writes what looks like library documentation.

| | |
| --- | --- |
| shapes | {c.layers} layers, hidden {c.hidden_size}, MLP {c.intermediate_size}, {c.heads} heads of {c.head_dim}, \
{c.kv_heads} key/value heads, context {c.context}, tied embeddings |
| vocabulary | {c.vocab_size} entries, byte-level BPE; any UTF-8 text encodes and decodes without loss |
| weights | float16, `model.safetensors` |
| **held-out text** | **{f.held_out_bits:.3f} bits per byte** (the stored float16 weights, computed in float32) |
| the same under token frequencies alone | {f.unigram_bits:.3f} bits per byte |

## The text

Everything comes from CPython {f.python}: the language reference in `pydoc_data/topics.py`, the docstrings and longer
comments of the standard library, and the docstrings of its C modules. Tests, third-party packages and files that
carry a licence of their own are left out. What was changed: code, tables and doctests are dropped, line breaks inside
paragraphs are undone, a summary line joins the paragraph below it, and docstrings of a mere line and paragraphs that
occurred before are left out. `models/training/corpus.py` and `prose.py` are the whole of it.

- licence of the text: [Python Software Foundation License Version 2](https://docs.python.org/3/license.html)
  (PSF-2.0), Copyright (c) 2001 and later, Python Software Foundation; All Rights Reserved. The weights are under this
  project's licence.
- corpus: {f.documents} documents, {f.corpus_bytes:,} bytes, SHA-256 of `corpus.jsonl`
  `{f.corpus_digest}`
- split by document, those of one name on one side (`lib/io.py`, `lib/_pyio.py`), and whatever shares eight words in a
  row with the learned part taken out of the others: {f.training_bytes:,} bytes ({f.training_tokens:,} tokens) are
  learned, {f.validation_bytes:,} bytes chose the checkpoint and the recipe, {f.held_out_bytes:,} bytes
  ({f.held_out_tokens:,} tokens) are held out and chose nothing

Bits per byte: the sum of -log2 p over every token of the held-out documents, the end token included, divided by their
bytes; documents are read in windows of {c.context} tokens, and a window knows nothing of the one before it.

## The training

{f.steps} steps of {f.tokens_per_step:,} tokens (AdamW, cosine schedule, dropout, strong weight decay; all numbers in
`Recipe`, `models/training/train.py`). The checkpoint is that of step {f.best_step}, which had the least loss on the
validation text ({f.validation_bits:.3f} bits per byte). torch {f.torch} on {f.device}.

```sh
python -m hjgc.models.training.train --device cuda --output models/demo          # minutes on a data-centre GPU
python -m hjgc.models.training.train --steps 20 --batch 1 --output demo-small    # minutes on a CPU: only a look
```

The seed is fixed and the files are sorted: the same build of Python gives the same corpus and tokenizer. Another
version ships another text (its digest is printed, and written here), and another device rounds differently, so that
the figures then come close but do not agree to the last digit. To build the text with one Python and train with
another: `python -m hjgc.models.training.corpus corpus.jsonl`, then `train --corpus corpus.jsonl`.

## How it reads

Temperature 0.7, one draw each, not picked; the prompts are "{'", "'.join(f.prompts)}":

{samples}
"""
