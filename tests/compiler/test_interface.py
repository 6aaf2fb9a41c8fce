"""Are a graph's inputs told apart as exporters name them, and given what a prompt without padding gives them?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hjgc.compiler.interface import Sizes, Slot, cache_slot, read_interface, unknown_inputs
from hjgc.plan_format.errors import CompileError

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
Declared = tuple[str, ir.DataType, tuple[int | str, ...]]


def value(name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def model(*inputs: Declared, outputs: tuple[Declared, ...] = ()) -> ir.Model:
    given = [value("input_ids", INT64, ("batch", "sequence")), *(value(*entry) for entry in inputs)]
    node = ir.Node("", "Identity", [given[0]], num_outputs=1 + len(outputs))
    for made, (name, dtype, shape) in zip(node.outputs, (("logits", FLOAT, (1, "s", 9)), *outputs), strict=True):
        made.name, made.dtype, made.shape = name, dtype, ir.Shape(shape)
    return ir.Model(ir.Graph(given, node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("past_key_values.3.key", Slot(3, "key")),
        ("present.12.value", Slot(12, "value")),
        ("past_key_3", Slot(3, "key")),
        ("present_value_7", Slot(7, "value")),
        ("input.past_key_values.layers.4.keys", Slot(4, "key")),
        ("past_key_values.layers.4.values", Slot(4, "value")),
        ("past_key_values.length", None),
        ("key.3", None),
    ],
)
def test_a_cache_is_known_by_its_name(name: str, slot: Slot | None) -> None:
    assert cache_slot(value(name, FLOAT, (1, 2, "past", 8))) == slot


def test_a_count_of_tokens_is_no_cache() -> None:
    assert cache_slot(value("past_key_values.layers.4.cumulative_length_value", INT64, ())) is None


@pytest.mark.parametrize(
    ("entry", "numbers"),
    [
        (("position_ids", INT64, ("b", "s")), [[3, 4]]),
        (("cache_position", INT64, ("s",)), [3, 4]),
        (("attention_mask", INT64, ("b", "t")), [[1, 1, 1, 1, 1]]),
        (("attention_mask", BOOL, (1, 1, "s", 6)), [[[[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]]]),
        (("cumulative_length", INT64, ()), 3),
        (("total_sequence_length", INT64, (1,)), [5]),
        (("use_cache_branch", BOOL, (1,)), [True]),
    ],
)
def test_an_input_gets_what_follows_from_the_sizes(entry: Declared, numbers: object) -> None:
    interface = read_interface(model(entry), Path("m.onnx"))
    (found,) = interface.known(Sizes(3, 2)).values()
    assert np.array_equal(found.astype(np.int64), np.asarray(numbers, np.int64))
    assert found.dtype == entry[1].numpy()
    assert list(unknown_inputs(interface)) == []


def test_an_input_that_nobody_knows_is_told() -> None:
    made = model(("temperature", FLOAT, (1,)))
    ir.Node("", "Neg", [made.graph.inputs[1]], num_outputs=1)
    (unknown,) = unknown_inputs(read_interface(made, Path("m.onnx")))
    assert unknown.name == "temperature"


def test_sizes_that_a_file_fixes_are_kept_and_those_too_long_for_its_cache_are_not_tried() -> None:
    key = ("past_key_values.0.key", FLOAT, (2, 4, 16, 8))
    grown = ("present.0.key", FLOAT, (2, 4, 24, 8))
    fixed = model(key, outputs=(grown,))
    fixed.graph.inputs[0].shape = ir.Shape((2, 8))
    assert read_interface(fixed, Path("m")).possible(Sizes(0, 5)) == Sizes(16, 8, 2)
    room = read_interface(model(key, outputs=(("present.0.key", FLOAT, (2, 4, 16, 8)),)), Path("m"))
    assert room.possible(Sizes(10, 6)) == Sizes(10, 6)
    assert room.possible(Sizes(10, 7)) is None
    assert [room.rows(cache, Sizes(1, 2)) for cache in room.caches] == [16]


def test_a_cache_that_comes_back_as_long_as_it_went_has_room() -> None:
    key = ("past_key_values.0.key", FLOAT, (1, 4, "rows", 8))
    interface = read_interface(model(key, outputs=(("present.0.key", FLOAT, (1, 4, "rows", 8)),)), Path("m"))
    assert [interface.rows(cache, Sizes(5, 2)) > 7 for cache in interface.caches] == [True]
    interface = read_interface(model(key, outputs=(("present.0.key", FLOAT, (1, 4, "more", 8)),)), Path("m"))
    assert [interface.rows(cache, Sizes(5, 2)) for cache in interface.caches] == [5]


def test_a_graph_without_token_ids_or_logits_is_refused() -> None:
    made = model()
    made.graph.outputs[0].name = "scores"
    with pytest.raises(CompileError, match="expected a decoder with input_ids and logits, found input_ids, scores"):
        read_interface(made, Path("m.onnx"))
