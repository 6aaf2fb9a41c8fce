"""Does the training learn, hold out what it says it holds out, and store what it learned?"""

from __future__ import annotations

import pydoc_data.topics
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hjgc.models.config import read_config
from hjgc.models.training.corpus import Corpus, Document, parse_corpus, split_corpus
from hjgc.models.training.prose import prose_blocks
from hjgc.models.training.store import write_whole
from hjgc.models.training.train import Recipe, configure, make_demo_model, schedule
from tests.models.running import transformers_logits

SMALL = Recipe(vocabulary=400, hidden=32, mlp=64, layers=1, heads=2, kv_heads=1, context=64, batch=8, steps=60, looks=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small products gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    topics = sorted(pydoc_data.topics.topics.items())
    documents = (Document(f"topics/{name}", "\n\n".join(prose_blocks(text))[:2000]) for name, text in topics)
    return Corpus("3.11.7", tuple(document for document in documents if document.text))


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("A sentence that is\nbroken over lines.", ["A sentence that is broken over lines."]),
        ("A heading of five words.\n************************", ["A heading of five words."]),
        (">>> a = 1\n>>> print(a, a, a, a)", []),
        ('if_stmt ::= "if" expression ":" suite', []),
        ("one two three", []),
        ("Use ``x`` or :class:`~a.B` here please.", ['Use "x" or "a.B" here please.']),
        ("* a short item\n* the second item, set\n  over two lines.\n", ["* the second item, set over two lines."]),
        (
            "* the first item of one list, long\n* the second item of this list.\n",
            ["* the first item of one list, long", "* the second item of this list."],
        ),
        (
            "Return what it is.\n\nThe body says more about it.",
            ["Return what it is. The body says more about it."],
        ),
    ],
)
def test_cleaning_keeps_sentences_and_drops_the_rest(text: str, blocks: list[str]) -> None:
    assert prose_blocks(text) == blocks


def test_the_parts_share_no_document_and_hold_out_about_a_twentieth() -> None:
    documents = tuple(Document(f"lib/m{index}.py", "x" * 100) for index in range(400))
    split = split_corpus(documents)
    parts = (split.training, split.validation, split.held_out)
    assert sorted(d.name for part in parts for d in part) == sorted(d.name for d in documents)
    assert [len(part) for part in parts] == [368, 12, 20]


def test_documents_of_one_name_stay_on_one_side() -> None:
    names = [
        f"{place}{index}{end}" for index in range(200) for place, end in (("lib/_pym", ".py"), ("extension/_m", ""))
    ]
    split = split_corpus(tuple(Document(name, "x" * 100) for name in names))
    for part in (split.training, split.validation, split.held_out):
        numbers = [re.sub(r"\D", "", document.name) for document in part]
        assert all(numbers.count(number) == 2 for number in numbers)


def test_a_paragraph_that_repeats_eight_words_of_the_learned_text_is_held_out_no_more() -> None:
    original = "a sentence of exactly eight words stands here"
    documents = [Document(f"lib/m{index}.py", f"{original}\n\nOnly {index} says this.") for index in range(400)]
    split = split_corpus(tuple(documents))
    assert all(original in document.text for document in split.training)
    assert split.held_out and all(document.text.startswith("Only") for document in split.held_out)


def test_a_saved_corpus_reads_back_the_same(corpus: Corpus) -> None:
    assert parse_corpus(corpus.dump()) == corpus
    assert replace(corpus, python="3.12.0").digest() != corpus.digest()


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe = Recipe(steps=1000, warm_up=100)
    rates = [schedule(step, recipe) for step in range(1, 1001)]
    assert max(rates) == rates[99] == 1.0
    assert rates[:99] == sorted(rates[:99]) and rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_a_short_training_beats_token_frequencies_and_stores_a_model(corpus: Corpus, tmp_path: Path) -> None:
    recipe = replace(SMALL, batch=16, steps=100, warm_up=10, peak_rate=2e-2, weight_decay=0.1, dropout=0.0)
    trained = make_demo_model(corpus, recipe, "cpu", tmp_path / "trained")
    assert trained.held_out_bits < 0.95 * trained.unigram_bits
    assert f"{trained.held_out_bits:.3f} bits per byte" in (tmp_path / "trained" / "README.md").read_text("utf-8")
    assert read_config(tmp_path / "trained") == configure(SMALL)
    assert {t.dtype for t in load_file(tmp_path / "trained" / "model.safetensors").values()} == {torch.float16}
    assert transformers_logits(tmp_path / "trained", torch.tensor([[0, 5, 9]]).numpy()).shape == (3, 400)
    assert not list((tmp_path / "trained").glob(".*"))


def test_the_same_seed_trains_the_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_demo_model(corpus, replace(SMALL, steps=3), "cpu", tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text("old", "utf-8")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"] and path.read_text("utf-8") == "old"
