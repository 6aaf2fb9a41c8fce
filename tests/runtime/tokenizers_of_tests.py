"""How do tests get small tokenizers of the two families, every byte a token?"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ("<pad>", "<s>", "</s>")


def byte_level(words: tuple[bytes, ...] = (), *, letters: str | None = None) -> Tokenizer:
    """As GPT-2 and Llama 3 have it: ids 0 to 2 are SPECIAL, then the bytes (of `letters`, or all), then `words`, which
    encoding never makes. Encoding puts `<s>` in front."""
    singles = range(256) if letters is None else sorted(set(letters.encode()))
    entries = [*SPECIAL, *(spell(bytes([byte])) for byte in singles), *map(spell, words)]
    tokenizer = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer)


def spell(text: bytes) -> str:
    """How byte-level tokenizers write bytes: those that print in Latin-1 as themselves, the rest from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return "".join(chr(byte if byte in printing else 256 + others.index(byte)) for byte in text)


def byte_fallback(words: tuple[str, ...]) -> Tokenizer:
    """As Llama 2 and Mistral have it: ids 0 to 2 are SPECIAL, 3 to 258 the bytes, then `words`, where a leading space
    is spelt ▁ and the decoder drops the first one of a text."""
    entries = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_special(tokenizer)


def metaspace(words: tuple[str, ...]) -> Tokenizer:
    """As T5 has it: words with ▁ for a leading space, which the decoder drops at the start of a text."""
    entries = [*SPECIAL, *words]
    tokenizer = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return _with_special(tokenizer)


def word_piece(words: tuple[str, ...]) -> Tokenizer:
    """As BERT has it: spaces between words, none before `##`."""
    entries = [*SPECIAL, *words]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="<pad>"))
    tokenizer.decoder = decoders.WordPiece()
    return _with_special(tokenizer)


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer
