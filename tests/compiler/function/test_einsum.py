"""Does each Einsum become few launches that compute what it says?"""

from __future__ import annotations

import pytest

from tests.compiler.function.one_node import Array, Shape, check_island, check_native, some

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6}


def operands(equation: str) -> list[Array]:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    return [some(*(SIZES[letter] for letter in term.replace("...", "bh"))) for term in terms]


def symbolic(equation: str) -> dict[int, Shape]:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    return {i: tuple(letter.upper() for letter in term.replace("...", "bh")) for i, term in enumerate(terms)}


@pytest.mark.parametrize(
    ("equation", "launches"),
    [
        ("ij->ji", ["transpose"]),
        ("bij->b", ["reduce"]),
        ("ij", []),
        ("ji", ["transpose"]),
        ("i,i->", ["matmul"]),
        ("bij,bjk->bik", ["matmul"]),
        ("bhik, bhjk -> bhij", ["transpose", "matmul"]),
        ("ij,jk", ["matmul"]),
        ("...ij,...jk->...ik", ["matmul"]),
        ("i,j->ij", ["matmul"]),
        ("ij,ij->ij", ["matmul"]),
        ("bihk,jhk->bjih", None),
        ("bij,jk->k", ["reduce", "matmul"]),
    ],
)
@pytest.mark.parametrize("fixed", [True, False])
def test_an_einsum_is_sums_and_one_product(equation: str, launches: list[str] | None, fixed: bool) -> None:
    shapes = {} if fixed else symbolic(equation)
    found = check_native("Einsum", operands(equation), shapes=shapes, equation=equation, tolerance=1e-4)
    assert launches is None or found == launches


@pytest.mark.parametrize("equation", ["ii->i", "ij,jk,ki->i"])
def test_diagonals_and_products_of_many_go_to_onnx_runtime(equation: str) -> None:
    inputs = [some(4, 4)] if equation == "ii->i" else operands(equation)
    check_island("Einsum", inputs, equation=equation, tolerance=1e-4)
