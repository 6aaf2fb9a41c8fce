"""Are losses what ONNX Runtime computes, with weights, with classes that do not count, and at any size?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hjgc.plan_format.errors import RunError
from tests.compiler.function.one_node import check_island, check_native, model_of, ours, some

SCORES, CLASSES = some(4, 5, 2), np.array([[0, 1], [4, -1], [2, 2], [3, 0]])
SYMBOLIC = {0: ("N", 5, "D"), 1: ("N", "D")}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weights", [None, np.abs(some(5))])
@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_a_loss_leaves_out_what_does_not_count(op: str, reduction: str, weights: Any) -> None:
    inputs = [SCORES, CLASSES, weights]
    launches = check_native(op, inputs, shapes=SYMBOLIC, reduction=reduction, ignore_index=-1)
    assert launches[-1] == "class_loss"


def test_the_logarithms_are_given_where_they_are_wanted() -> None:
    inputs = [SCORES, np.abs(CLASSES)]
    assert check_native("SoftmaxCrossEntropyLoss", inputs, outputs=("y", "logarithms")) == ["softmax", "class_loss"]


def test_a_class_that_is_none_ends_the_call() -> None:
    inputs = [SCORES, CLASSES]
    with pytest.raises(RunError, match="classes of 0 to 4"):
        ours(model_of("NegativeLogLikelihoodLoss", inputs), inputs)


def test_classes_whose_shape_is_not_certain_go_to_onnx_runtime() -> None:
    inputs = [SCORES, np.abs(CLASSES)]
    check_island("NegativeLogLikelihoodLoss", inputs, shapes={1: ("N", 2)})
