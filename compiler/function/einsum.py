"""How does an Einsum become sums, one matrix product and orders of axes?"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.function.products import product
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.sizes import Expression


@dataclass(frozen=True)
class _Labelled:
    """A tensor and a letter for each of its axes."""

    x: Tensor
    labels: str


@lowers("Einsum")
def _einsum(node: Lowering) -> None:
    tensors = [node.x(i) for i in range(node.count)]
    if tensors[0].dtype not in (*FLOATS, *SIGNED):
        raise node.refuse(f"of {tensors[0].dtype}")
    parts, wanted = _labels(node, tensors)
    _sizes(node, parts)
    if len(parts) == 1:
        whole = _summed(node, parts[0], wanted)
    elif len(parts) == 2:
        left, right = (
            _summed(node, part, wanted + other.labels) for part, other in zip(parts, reversed(parts), strict=True)
        )
        whole = _multiplied(node, left, right, wanted)
    else:
        raise node.refuse(f"of {len(parts)} operands")
    node.give(_ordered(node, whole, wanted).x)


def _labels(node: Lowering, tensors: Sequence[Tensor]) -> tuple[list[_Labelled], str]:
    """Each operand with its letters, and those of the result; dots are given letters of their own."""
    terms, arrow, wanted = node.text("equation", "").replace(" ", "").partition("->")
    texts = terms.split(",")
    if len(texts) != len(tensors):
        raise node.refuse(f"its equation has {len(texts)} terms for {len(tensors)} operands")
    free = "".join(letter for letter in string.ascii_letters if letter not in terms)
    dots = {len(x.shape) - len(text.replace("...", "")) for x, text in zip(tensors, texts, strict=True) if "." in text}
    if len(dots) > 1 or any(count < 0 or count > len(free) for count in dots):
        raise node.refuse("its dots stand for different numbers of axes")
    stand = free[: next(iter(dots), 0)]
    texts = [text.replace("...", stand) for text in texts]
    if not arrow:
        letters = "".join(texts)
        wanted = stand + "".join(sorted({x for x in letters if letters.count(x) == 1 and x not in stand}))
    wanted = wanted.replace("...", stand)
    for text in (*texts, wanted):
        if not set(text) <= set(string.ascii_letters) or len(set(text)) != len(text):
            raise node.refuse(f"its equation repeats a letter within {text!r}, or has what is no letter")
    return [_Labelled(x, text) for x, text in zip(tensors, texts, strict=True)], wanted


def _sizes(node: Lowering, parts: Sequence[_Labelled]) -> dict[str, Expression]:
    """The size of each letter: nothing is broadcast."""
    found: dict[str, Expression] = {}
    for part in parts:
        if len(part.labels) != len(part.x.shape):
            raise node.refuse(f"{part.labels!r} stands for {len(part.x.shape)} axes")
        for letter, size in zip(part.labels, part.x.shape, strict=True):
            if found.setdefault(letter, size) != size:
                raise node.refuse(f"letter {letter!r} stands for different sizes")
    return found


def _summed(node: Lowering, part: _Labelled, kept: str) -> _Labelled:
    """Without the letters that are not kept."""
    axes = tuple(i for i, letter in enumerate(part.labels) if letter not in kept)
    if not axes:
        return part
    x = node.emit("reduce", [part.x], {"kind": "sum", "axes": axes, "keep": False})
    return _Labelled(x, "".join(letter for letter in part.labels if letter in kept))


def _multiplied(node: Lowering, left: _Labelled, right: _Labelled, wanted: str) -> _Labelled:
    """Letters of both that are wanted count matrices, those of both that are not are summed over."""
    batch = "".join(letter for letter in left.labels if letter in right.labels and letter in wanted)
    inner = "".join(letter for letter in left.labels if letter in right.labels and letter not in wanted)
    rows = "".join(letter for letter in left.labels if letter not in right.labels)
    columns = "".join(letter for letter in right.labels if letter not in left.labels)
    sizes = _sizes(node, (left, right))

    def matrices(part: _Labelled, *groups: str) -> Tensor:
        whole = _ordered(node, part, "".join(groups)).x
        return node.view(whole, [dims.product(sizes[letter] for letter in group) for group in groups])

    a, b = matrices(left, batch, rows, inner), matrices(right, batch, inner, columns)
    labels = batch + rows + columns
    y = node.emit("matmul", [a, b], product())
    return _Labelled(node.view(y, [sizes[letter] for letter in labels]), labels)


def _ordered(node: Lowering, part: _Labelled, labels: str) -> _Labelled:
    if set(part.labels) != set(labels):
        raise node.refuse(f"its result has letters of no operand: {labels!r}")
    if part.labels == labels:
        return part
    x = node.emit("transpose", [part.x], {"axes": tuple(part.labels.index(letter) for letter in labels)})
    return _Labelled(x, labels)
