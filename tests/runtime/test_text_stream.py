"""Is text given out as soon as it is certain, never before, and never with a part of a stop string?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer

from hjgc.runtime.text_stream import StopStrings, TextStream
from tests.runtime.tokenizers_of_tests import byte_fallback, byte_level, metaspace, spell, word_piece

WORDS = ("▁", "▁the", "▁cat", "cat", "s", "a", "▁é", "。")
TEXT = "naïve café — “quotes” 😀👩‍👩‍👧 日本語 مرحبا \U0001f1eb\U0001f1f7 end\n"


def stream_of(tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> TextStream:
    return TextStream(lambda ids: tokenizer.decode(list(ids)), prompt)


def pieces(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    """What comes out token by token, and last what is left."""
    stream = stream_of(tokenizer, prompt)
    return [*(stream.push(token) for token in ids), stream.finish()]


def ids_of(tokenizer: Tokenizer, *tokens: str | bytes) -> list[int]:
    """The ids of tokens by name, and of bytes one by one, for a byte-fallback tokenizer."""
    names = [f"<0x{x:02X}>" if isinstance(x, int) else x for t in tokens for x in (t if isinstance(t, bytes) else [t])]
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in names]


def test_a_character_comes_with_its_last_byte_and_not_before() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("é😀x", add_special_tokens=False).ids
    assert pieces(tokenizer, ids) == ["", "é", "", "", "", "😀", "x", ""]


def test_the_pieces_of_byte_level_text_are_the_text_and_each_is_whole() -> None:
    tokenizer = byte_level()
    out = pieces(tokenizer, tokenizer.encode(TEXT).ids)
    assert "".join(out) == TEXT
    assert "\ufffd" not in "".join(out)
    assert out[-1] == ""


def test_tokens_that_end_and_begin_inside_characters_join() -> None:
    """Merges of byte-level tokenizers do not respect characters."""
    tokenizer = byte_level((b"a\xf0\x9f", b"\x98\x80\xc3", b"\xa9!"))
    first, second, third = range(tokenizer.get_vocab_size() - 3, tokenizer.get_vocab_size())
    assert pieces(tokenizer, [first, second, third]) == ["a", "😀", "é!", ""]
    assert pieces(tokenizer, [first, third]) == ["a", "\ufffd!", ""]  # F0 9F A9 is still a beginning


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_read_as_the_decoder_reads_them(seed: int) -> None:
    """Byte-level text is settled character by character, so this holds for broken bytes too."""
    tokenizer = byte_level((b"the", b" cat", b"\xc3\xa9", b"\xf0\x9f", b"\x98\x80\xf0"))
    ids = random.Random(seed).choices(range(tokenizer.get_vocab_size()), k=120)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_run_of_broken_bytes_is_not_held_for_ever() -> None:
    tokenizer = byte_level()
    bad = tokenizer.token_to_id(spell(b"\xff"))  # begins no character
    assert bad is not None
    out = pieces(tokenizer, [bad] * 50)
    assert "".join(out) == "\ufffd" * 50
    assert len(out[-1]) <= 3


def test_an_unfinished_character_at_the_end_reads_as_one_that_is_broken() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a😀", add_special_tokens=False).ids[:-1]
    assert pieces(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_a_replacement_character_that_was_meant_comes_with_the_next_token() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("\ufffdx", add_special_tokens=False).ids
    assert pieces(tokenizer, ids) == ["", "", "", "\ufffdx", ""]


def test_byte_fallback_characters_come_when_they_are_whole_one_after_another() -> None:
    tokenizer = byte_fallback(WORDS)
    ids = ids_of(tokenizer, "▁cat", "日".encode(), "😀".encode(), "s")
    assert pieces(tokenizer, ids) == ["cat", "", "", "日", "", "", "", "😀", "s", ""]


def test_a_whole_character_stays_when_the_bytes_after_it_turn_out_broken() -> None:
    """The decoder would turn the whole run of bytes into U+FFFD, but what is given out cannot be taken back."""
    tokenizer = byte_fallback(WORDS)
    ids = ids_of(tokenizer, "日".encode(), "日".encode()[:2], "▁cat")
    assert pieces(tokenizer, ids) == ["", "", "日", "", "", "\ufffd\ufffd cat", ""]


@pytest.mark.parametrize("seed", range(20))
def test_random_words_and_whole_characters_read_as_the_decoder_reads_them(seed: int) -> None:
    tokenizer = byte_fallback(WORDS)
    choose = random.Random(seed).choice
    tokens = [choose([*WORDS, "日".encode(), "😀".encode(), b"\n", "é".encode(), "<s>"]) for _ in range(80)]
    ids = ids_of(tokenizer, *tokens)
    out = pieces(tokenizer, ids)
    assert "".join(out) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in out)


@pytest.mark.parametrize("seed", range(20))
def test_random_tokens_of_a_byte_fallback_vocabulary_never_fail(seed: int) -> None:
    tokenizer = byte_fallback(WORDS)
    ids = random.Random(seed).choices(range(tokenizer.get_vocab_size()), k=200)
    out = "".join(pieces(tokenizer, ids))
    for word in ("cat", "the", "。"):
        assert out.count(word) == tokenizer.decode(ids).count(word)


@pytest.mark.parametrize("make", [byte_fallback, metaspace])
def test_the_first_word_of_an_answer_is_spaced_from_the_prompt(make: Callable[..., Tokenizer]) -> None:
    tokenizer = make(WORDS)
    prompt = ids_of(tokenizer, "<s>", "▁the")
    assert pieces(tokenizer, ids_of(tokenizer, "▁cat", "s"), prompt) == [" cat", "s", ""]
    assert pieces(tokenizer, ids_of(tokenizer, "s"), prompt) == ["s", ""]


@pytest.mark.parametrize("make", [byte_fallback, metaspace])
def test_a_text_that_begins_with_the_answer_has_no_space_in_front(make: Callable[..., Tokenizer]) -> None:
    tokenizer = make(WORDS)
    assert pieces(tokenizer, ids_of(tokenizer, "▁the", "▁cat"), ids_of(tokenizer, "<s>")) == ["the", " cat", ""]


def test_spaces_are_kept_when_special_tokens_stand_between() -> None:
    tokenizer = byte_fallback(WORDS)
    ids = ids_of(tokenizer, "▁the", "</s>", "<s>", "▁cat", "<s>", "▁cat")
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == "the cat cat"
    assert pieces(tokenizer, ids[3:], ids[:3])[0] == " cat"


def test_a_lone_space_at_the_start_waits_to_be_dropped() -> None:
    tokenizer = byte_fallback(WORDS)
    ids = ids_of(tokenizer, "▁", "cat", "▁", "▁", "cat")
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == "cat  cat"


def test_word_pieces_join_as_their_decoder_joins_them() -> None:
    words = ("play", "##ing", "cat", "##s", ".")
    tokenizer = word_piece(words)
    ids = ids_of(tokenizer, "play", "##ing", "cat", "##s", ".")
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == "playing cats."
    assert pieces(tokenizer, ids[2:], ids[:2]) == [" cat", "s", ".", ""]


def test_an_answer_may_finish_the_character_that_its_prompt_began() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a😀b", add_special_tokens=False).ids
    assert pieces(tokenizer, ids[3:], ids[:3]) == ["", "😀", "b", ""]


def test_only_a_short_window_is_decoded_for_each_token() -> None:
    tokenizer = byte_level()
    lengths: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return tokenizer.decode(list(ids))

    stream = TextStream(decode, tokenizer.encode("long " * 500).ids)
    for token in tokenizer.encode(TEXT * 20).ids:
        stream.push(token)
    assert max(lengths) <= 16


def stopped(stops: Sequence[str], *parts: str) -> tuple[list[str], str | None]:
    scanner = StopStrings(stops)
    return [*(scanner.push(part) for part in parts), scanner.finish()], scanner.found


@pytest.mark.parametrize(
    ("stops", "parts", "out", "found"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], None),
        (["END"], ["textEND more"], ["text", ""], "END"),
        (["END"], ["text E", "N", "D", "x"], ["text ", "", "", "", ""], "END"),
        (["END"], ["text E", "N", "ough"], ["text ", "", "ENough", ""], None),
        (["END"], ["text EN"], ["text ", "EN"], None),
        (["END"], ["EEN", "D"], ["E", "", ""], "END"),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", "", ""], "aab"),
        (["\n\n"], ["line\n", "\n", "next"], ["line", "", "", ""], "\n\n"),
        (["\n\n"], ["line\n", "next"], ["line", "\nnext", ""], None),
        (["xyz", "b"], ["abc"], ["a", ""], "b"),
        (["abcX", "bc"], ["ab", "c", "X"], ["", "a", "", ""], "bc"),
        (["abcX", "bc"], ["abcX"], ["a", ""], "bc"),
        (["abc", "bc"], ["zabc"], ["z", ""], "abc"),
        (["😀"], ["a", "😀"], ["a", "", ""], "😀"),
    ],
)
def test_a_stop_string_cuts_the_text_and_its_beginning_is_held_back(
    stops: list[str], parts: list[str], out: list[str], found: str | None
) -> None:
    assert stopped(stops, *parts) == (out, found)


@pytest.mark.parametrize("seed", range(50))
def test_where_a_stop_string_cuts_does_not_depend_on_how_the_text_arrives(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=12))
    stops = ["".join(rng.choices("ab", k=rng.randint(2, 4))) for _ in range(3)]
    whole, by_letter = stopped(stops, text), stopped(stops, *text)
    assert "".join(whole[0]) == "".join(by_letter[0]) and whole[1] == by_letter[1]
    assert not any(stop in "".join(by_letter[0]) for stop in stops)
