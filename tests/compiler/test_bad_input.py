"""Does whatever a person may hand to the compiler end in a plan or in one line, and never in half a file?"""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hjgc.compiler import compile_model
from hjgc.plan_format import files
from hjgc.plan_format.errors import InputError
from tests.compiler.exports import SMALL, compiled, copy_of

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return copy_of("gqa", tmp_path / "model")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refusal(model: Path, output: Path | None = None, **options: Any) -> InputError:
    """The error, found to be one line that says what was expected and found, and to leave nothing behind."""
    folder = model.parent
    before = tree(folder) if folder.is_dir() else set[str]()
    with pytest.raises(InputError) as caught:
        compile_model(model, output or folder / "plan.hjg", **SMALL | options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert (tree(folder) if folder.is_dir() else set()) == before
    return caught.value


def edited(model: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """The file with a change made to its protobuf message."""
    proto = onnx.load(model, load_external_data=False)
    edit(proto)
    model.unlink()  # other folders hold the same file
    model.write_bytes(proto.SerializeToString())
    return model


def initializer(proto: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def external(tensor: TensorProto, key: str, value: object) -> None:
    """Set one entry of where the tensor's data lie."""
    next(entry for entry in tensor.external_data if entry.key == key).value = str(value)


# What is no ONNX file


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("model.onnx", "no")
    return data.getvalue()


NOT_ONNX: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "found an empty file"),
    "text": (b"this is no model\n", "expected an ONNX model"),
    "json": (b'{"model_type": "llama"}', "expected an ONNX model"),
    "zip": (zipped(), "expected an ONNX model"),
    "png": (PNG, "expected an ONNX model"),
    "zeros": (bytes(4096), "expected an ONNX model"),
    "one_byte": (b"\x08", "expected an ONNX model"),
    "a_plan": (b"HJGCPLAN" + bytes(100), "found a plan"),
    "only_a_version": (b"\x08\x0b", "found an empty graph"),
}


@pytest.mark.parametrize("case", NOT_ONNX)
def test_a_file_that_is_no_onnx_model_is_refused(case: str, tmp_path: Path) -> None:
    data, words = NOT_ONNX[case]
    (tmp_path / "model.onnx").write_bytes(data)
    error = refusal(tmp_path / "model.onnx")
    assert error.place == str(tmp_path / "model.onnx")
    assert words in error.problem
    assert error.next_step


def test_a_path_with_nothing_there_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none.onnx")
    assert error.problem == "expected an ONNX file or a model folder, found nothing there"
    assert "found nothing there" in refusal(tmp_path / "none" / "model.onnx", tmp_path / "plan.hjg").problem


@pytest.mark.parametrize("name", ["nul\0.onnx", "x" * 300 + ".onnx"])
def test_a_path_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / name).problem


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert "found what is no regular file" in refusal(tmp_path / "model.onnx").problem


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "empty", tmp_path / "plan.hjg")
    assert "expected a Hugging Face model folder with config.json" in error.problem


def test_a_file_beyond_protobufs_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate((2 << 30) + 1)  # a hole: it takes no disk
    assert "found 2147483649" in refusal(tmp_path / "model.onnx").problem


def test_a_model_cut_short_anywhere_is_refused(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    weights = model.with_name("model.safetensors")
    cut = tmp_path / "cut" / "model.onnx"
    cut.parent.mkdir()
    os.link(weights, cut.with_name(weights.name))
    rng = np.random.default_rng(3)
    for length in {*range(1, 40), *range(len(data) - 300, len(data)), *rng.integers(0, len(data), 300).tolist()}:
        cut.write_bytes(data[:length])
        with pytest.raises(InputError) as caught:
            compile_model(cut, cut.with_name("plan.hjg"), **SMALL)
        assert "\n" not in str(caught.value), length
        assert tree(cut.parent) == {"model.onnx", weights.name}, length


def test_a_model_with_bytes_flipped_is_refused_or_compiles(model: Path) -> None:
    """Two hundred times: never another exception than ours."""
    data = model.read_bytes()
    model.unlink()
    rng = np.random.default_rng(8)
    refused = 0
    for _ in range(200):
        flipped = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            flipped[place] ^= 1 << int(rng.integers(0, 8))
        model.write_bytes(flipped)
        try:
            compiled(model)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 40 < refused < 200


# Weights


def test_missing_weights_are_named(model: Path) -> None:
    model.with_name("model.safetensors").unlink()
    error = refusal(model)
    assert error.problem == "expected its data in model.safetensors, found no such file"
    assert str(error.field).startswith("initializer model.")
    assert error.next_step == "put the weights back beside the model"


def test_weights_cut_short_are_named_with_both_figures(model: Path) -> None:
    weights = model.with_name("model.safetensors")
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-4])
    error = refusal(model)
    assert f"of model.safetensors, found a file of {len(data) - 4}" in error.problem
    assert "fetch it again" in str(error.next_step)


def with_tensor(name: str, edit: Callable[[TensorProto], object]) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        edit(initializer(proto, name))

    return change


def retyped(dtype: int, shape: tuple[int, ...] = ()) -> Callable[[TensorProto], None]:
    def edit(tensor: TensorProto) -> None:
        tensor.data_type = dtype
        if shape:
            tensor.ClearField("dims")
            tensor.dims.extend(shape)

    return edit


def made_inline(tensor: TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ones(tuple(tensor.dims), np.float32), tensor.name))


def claims(*dims: int, data: bytes = b"") -> Callable[[TensorProto], None]:
    """The tensor inside the model, with this shape and these bytes."""

    def edit(tensor: TensorProto) -> None:
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=TensorProto.FLOAT, dims=dims, raw_data=data))

    return edit


def shape(*dims: int) -> Callable[[TensorProto], None]:
    def edit(tensor: TensorProto) -> None:
        tensor.ClearField("dims")
        tensor.dims.extend(dims)

    return edit


def place(key: str, value: object) -> Callable[[TensorProto], None]:
    return lambda tensor: external(tensor, key, value)


def rekey(tensor: TensorProto, key: str, other: str) -> None:
    next(entry for entry in tensor.external_data if entry.key == key).key = other


NORM, QUERY, DOWN = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
FREQUENCIES = "inverse_frequencies"

BAD_TENSORS: dict[str, tuple[str, Callable[[TensorProto], object], str]] = {
    "int8": (QUERY, retyped(TensorProto.INT8, (64, 256)), "expected one of float32, float16, bfloat16, found int8"),
    "float64": (QUERY, retyped(TensorProto.DOUBLE, (64, 32)), "one of float32, float16, bfloat16, found double"),
    "a_type_that_onnx_has_not": (QUERY, retyped(99), "expected an ONNX model"),
    "undefined_type": (QUERY, retyped(0), "expected elements of a known size, found undefined"),
    "shape_larger_than_its_data": (QUERY, shape(64, 65), "expected 16640 bytes for its shape, found 16384"),
    "negative_shape": (QUERY, shape(-64, -64), "expected a shape of counts, found (-64, -64)"),
    "shape_of_another_rank": (QUERY, shape(64, 8, 8), "its second operand has 3 axes, not 2"),
    "claims_4_tib_of_a_file": (QUERY, shape(1 << 20, 1 << 20), f"expected {4 << 40} bytes for its shape"),
    "claims_4_tib_inside": (FREQUENCIES, claims(1 << 20, 1 << 20), f"expected {4 << 40} bytes for its"),
    "claims_more_than_it_has": (FREQUENCIES, claims(8, data=bytes(28)), "32 bytes for its shape (8,), found others"),
    "frequencies_no_vector": (FREQUENCIES, claims(2, 4, data=bytes(32)), "by which angles it turns heads is not found"),
    "frequencies_too_few": (FREQUENCIES, claims(7, data=bytes(28)), "expected"),
    "offset_negative": (DOWN, place("offset", -8), "expected an ONNX model, found bytes that do not parse"),
    "offset_past_the_end": (DOWN, place("offset", 1 << 62), "bytes at 4611686018427387904 of model.safetensors"),
    "offset_a_word": (DOWN, place("offset", "here"), "expected an ONNX model"),
    "length_too_short": (DOWN, place("length", 4), "expected 40960 bytes for its shape, found 4 at"),
    "offset_misspelt": (DOWN, lambda tensor: rekey(tensor, "offset", "off5et"), "found location, off5et, length"),
    "offset_twice": (DOWN, lambda tensor: rekey(tensor, "length", "offset"), "found location, offset, offset"),
    "location_missing": (DOWN, lambda tensor: rekey(tensor, "location", "basepath"), "found basepath, offset, length"),
    "length_a_number_beyond_any": (DOWN, place("length", "9" * 30), "expected 40960 bytes for its shape, found 999"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_weight_that_cannot_be_used_is_refused_by_name(case: str, model: Path) -> None:
    name, edit, words = BAD_TENSORS[case]
    error = refusal(edited(model, with_tensor(name, edit)))
    assert words in error.problem
    assert error.place in (str(model), str(model.with_name("plan.hjg")))


ESCAPES = [
    "../outside.bin", "..", "a/../../outside.bin", "/etc/hostname", "//etc/hostname", "..\\outside.bin",
    "C:\\outside.bin", "C:outside.bin", "\\outside.bin", "", ".", "\0", "folder-that-leads-out/outside.bin",
]  # fmt: skip


@pytest.mark.parametrize("location", ESCAPES)
def test_weights_outside_the_models_folder_are_refused_also_where_they_exist(location: str, model: Path) -> None:
    (model.parents[1] / "outside.bin").write_bytes(bytes(1 << 16))
    (model.parent / "folder-that-leads-out").symlink_to(model.parents[1])
    edited(model, with_tensor(NORM, place("location", location)))
    edited(model, with_tensor(NORM, place("offset", 0)))
    error = refusal(model)
    assert error.field == f"initializer {NORM}"
    assert "inside the model's folder" in error.problem or "found no such file" in error.problem
    assert error.next_step


def test_a_link_to_a_file_outside_is_refused(model: Path) -> None:
    weights = model.with_name("model.safetensors")
    weights.rename(model.parents[1] / "elsewhere.safetensors")
    weights.symlink_to(model.parents[1] / "elsewhere.safetensors")
    error = refusal(model)
    assert "expected 'model.safetensors' inside the weights root" in error.problem
    assert "elsewhere.safetensors" in error.problem


@pytest.mark.parametrize("inside", ["constant", "if"])
def test_external_data_in_an_attribute_is_never_followed(inside: str, model: Path) -> None:
    tensor = TensorProto(name="leak", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    node = helper.make_node("Constant", [], ["leak"], "leaking", value=tensor)
    if inside == "if":
        graph = helper.make_graph([node], "then", [], [helper.make_tensor_value_info("leak", TensorProto.FLOAT, [2])])
        node = helper.make_node("If", ["yes"], ["leaked"], "leaking", then_branch=graph, else_branch=graph)
    error = refusal(edited(model, lambda proto: proto.graph.node.insert(0, node)))
    assert error.problem == "expected external data for weights only, found it in a node's attribute"
    assert error.field == "tensor 'leak'"


# Graphs


def in_a_circle(proto: onnx.ModelProto) -> None:
    nodes = {node.name: node for node in proto.graph.node}
    nodes["model.layers.0/Add"].input[0] = nodes["model.layers.0/Add_1"].output[0]


def with_a_branch(proto: onnx.ModelProto) -> None:
    """An If between the two layers, its condition computed."""
    user = next(node for node in proto.graph.node if node.name == "model.layers.1.input_layernorm/RMSNormalization")
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", [user.input[0]], ["out"])], "branch", [], [result])
    proto.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["LessOrEqual_int"], ["any"], "planted/any", keepdims=0),
            helper.make_node("Cast", ["LessOrEqual"], ["LessOrEqual_int"], "planted/int", to=TensorProto.INT32),
            helper.make_node("Cast", ["any"], ["chosen"], "planted/chosen", to=TensorProto.BOOL),
            helper.make_node("If", ["chosen"], ["branched"], "planted/If", then_branch=branch, else_branch=branch),
        ]
    )
    user.input[0] = "branched"


def a_value_made_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["input_ids"], ["Gather"], "planted"))


def a_weight_given_twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(initializer(proto, NORM))


def an_input_that_a_node_makes(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["input_ids"], ["position_ids"], "planted"))


def a_node_without_its_operand(proto: onnx.ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "MatMul").input.pop()


def an_attribute_of_another_type(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Concat")
    node.ClearField("attribute")
    node.attribute.append(helper.make_attribute("axis", 2.0))


def a_value_nobody_makes(proto: onnx.ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "MatMul").input[0] = "nowhere"


def an_output_nobody_makes(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def a_name_that_is_no_text(proto: onnx.ModelProto) -> None:
    node = proto.graph.node.add()
    node.ParseFromString(b"\x1a\x02\xff\xfe" + helper.make_node("Identity", ["Gather"], ["more"]).SerializeToString())


def a_function_of_itself(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Loop", ["x"], ["y"], "again", domain="local")
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
    proto.functions.append(helper.make_function("local", "Loop", ["x"], ["y"], [node], opsets))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    user = next(node for node in proto.graph.node if node.name == "model.norm/RMSNormalization")
    proto.graph.node.append(helper.make_node("Loop", [user.input[0]], ["looped"], "planted", domain="local"))
    user.input[0] = "looped"


def without_a_cache(proto: onnx.ModelProto) -> None:
    for value in proto.graph.input:
        value.name = value.name.replace("past_key_values.", "earlier.")
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("past_key_values.", "earlier.")


def head_of_another_vocabulary(proto: onnx.ModelProto) -> None:
    head = initializer(proto, "lm_head.weight")
    shape(198, 64)(head)
    external(head, "length", 198 * 64 * 4)


def head_of_another_width(proto: onnx.ModelProto) -> None:
    head = initializer(proto, "lm_head.weight")
    shape(398, 32)(head)


def with_operators_from_the_future(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 9999


def without_operators(proto: onnx.ModelProto) -> None:
    proto.ClearField("opset_import")


BAD_GRAPHS: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str]] = {
    # case: (edit, words of the whole line, words of the reason)
    "a_circle": (in_a_circle, "", "expected a well-formed graph, found one that cannot be normalised"),
    "a_branch": (with_a_branch, "planted/", "expected an operator that a rule covers"),
    "a_value_made_twice": (a_value_made_twice, "value 'Gather'", "made once, found it twice"),
    "a_weight_given_twice": (a_weight_given_twice, f"value '{NORM}'", "made once, found it twice"),
    "an_input_made": (an_input_that_a_node_makes, "value 'position_ids'", "made once, found it twice"),
    "an_operand_short": (a_node_without_its_operand, "q_proj/MatMul", "expected a standard operator, found MatMul"),
    "an_attribute_of_another_type": (an_attribute_of_another_type, "Concat", "expected a standard operator"),
    "a_value_nobody_makes": (a_value_nobody_makes, "q_proj/MatMul", "found 'nowhere', which nothing does"),
    "an_output_nobody_makes": (an_output_nobody_makes, "output 'more'", "expected a node that makes it, found none"),
    "a_name_that_is_no_text": (a_name_that_is_no_text, "NodeProto.name", "expected names in UTF-8, found other bytes"),
    "a_function_of_itself": (a_function_of_itself, "", "expected"),
    "no_cache": (without_a_cache, "input earlier.0.key", "found none of these by its name"),
    "another_vocabulary": (
        head_of_another_vocabulary, "initializer lm_head.weight", "expected 199 rows as in the embedding, found 198",
    ),
    "another_width": (head_of_another_width, "lm_head", "expected"),
    "operators_from_the_future": (with_operators_from_the_future, "opset_import", "or one before it, found 9999"),
    "no_operators": (without_operators, "opset_import", "expected the version of the standard operators, found none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_a_graph_that_is_no_decoder_or_no_graph_is_refused(case: str, model: Path) -> None:
    edit, where, words = BAD_GRAPHS[case]
    error = refusal(edited(model, edit))
    assert words in error.problem
    assert where in str(error)


def test_nodes_may_come_in_any_order_and_share_a_name(model: Path) -> None:
    def shuffle(proto: onnx.ModelProto) -> None:
        nodes = list(proto.graph.node)
        proto.graph.ClearField("node")
        proto.graph.node.extend(nodes[i] for i in np.random.default_rng(1).permutation(len(nodes)))
        for node in proto.graph.node:
            node.name = "same"

    assert len(compiled(edited(model, shuffle)).plan.phase("decode").launches) == 15


def test_a_name_with_line_ends_leaves_the_error_on_one_line(model: Path) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == "Sigmoid")
        node.domain, node.op_type, node.name = "com.acme", "Magic", "bad\nname\r\nTraceback"
        proto.opset_import.add(domain="com.acme", version=1)

    assert "node bad name Traceback" in str(refusal(edited(model, rename)))


# Outputs and options


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "expected a file to write, found a folder"),
        ("none/plan.hjg", "expected a folder to write into, found none at"),
        ("model.onnx/plan.hjg", "expected a folder to write into, found none at"),
        ("model.onnx", "found a file that the plan is made from"),
        ("model.safetensors", "found a file that the plan is made from"),
    ],
)
def test_an_output_that_cannot_be_or_must_not_be_written_is_refused(name: str, words: str, model: Path) -> None:
    (model.parent / "folder").mkdir()
    before = {path: path.read_bytes() for path in model.parent.iterdir() if path.is_file()}
    error = refusal(model, model.parent / name)
    assert (error.place, words in error.problem) == (str(model.parent / name), True)
    assert error.next_step
    assert {path: path.read_bytes() for path in model.parent.iterdir() if path.is_file()} == before


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("hjgc.plan_format.files.tempfile.mkstemp", errno.EACCES, "Permission denied"),
        ("hjgc.plan_format.files.tempfile.mkstemp", errno.EROFS, "Read-only file system"),
        ("pathlib.Path.write_bytes", errno.ENOSPC, "No space left on device"),
        ("hjgc.plan_format.files.os.replace", errno.EIO, "Input/output error"),
    ],
)
def test_a_folder_or_disk_that_refuses_the_plan_is_named_and_keeps_the_earlier_plan(
    target: str, code: int, words: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = model.with_name("plan.hjg")
    output.write_bytes(b"an earlier plan")
    monkeypatch.setattr(target, failing(code))
    error = refusal(model, output)
    assert (error.place, error.problem) == (str(output), f"cannot be written: {words}")
    assert error.next_step == "choose another output path"
    assert output.read_bytes() == b"an earlier plan"


def test_a_disk_that_fills_up_half_way_leaves_no_half_of_a_plan(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, data: bytes) -> NoReturn:
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.Path, "write_bytes", half)
    assert "No space left on device" in refusal(model).problem


STAGES = (
    "import", "normalise", "recognise", "specialise", "lower", "classify", "plan_memory", "segment", "select_kernels",
    "build", "fingerprint", "emit", "verify",
)  # fmt: skip


def test_every_stage_is_announced_and_timed(model: Path) -> None:
    heard: list[str] = []
    result = compile_model(model, model.with_name("plan.hjg"), **SMALL, progress=heard.append)
    assert tuple(heard) == STAGES
    assert tuple(result.seconds) == STAGES


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("earlier", [None, b"an earlier plan"])
def test_ctrl_c_at_any_stage_leaves_what_was_there(stage: str, earlier: bytes | None, model: Path) -> None:
    output = model.with_name("plan.hjg")
    if earlier:
        output.write_bytes(earlier)
    before = tree(model.parent)

    def interrupt(heard: str) -> None:
        if heard == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_model(model, output, **SMALL, progress=interrupt)
    assert tree(model.parent) == before
    assert not earlier or output.read_bytes() == earlier


@pytest.mark.parametrize("at", ["write_bytes", "chmod"])
def test_ctrl_c_while_the_plan_is_written_leaves_nothing(at: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = tree(model.parent)
    monkeypatch.setattr(files.Path, at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        compiled(model)
    assert tree(model.parent) == before


OPTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a_target_unknown": ({"targets": ("rocm",)}, "--target", "expected cpu or sm_NN, found 'rocm'"),
    "a_chip_that_nobody_tried": ({"targets": ("sm_99",)}, "--target", "found 'sm_99'"),
    "a_target_twice": ({"targets": ("cpu", "cpu")}, "--target", "expected each target once, found cpu, cpu"),
    "no_target": ({"targets": ()}, "--target", "expected each target once, found none"),
    "prompt_of_nothing": ({"prompt": (0, 8)}, "--prompt", "found 0:8"),
    "prompt_falling": ({"prompt": (9, 8)}, "--prompt", "found 9:8"),
    "prompt_beyond_context": ({"prompt": (1, 65)}, "--prompt", "expected at most the context of 64, found 65"),
    "prompt_beyond_kernels": (
        {"prompt": (1, 70_000), "context": 100_000, "targets": ("sm_90",)},
        "--prompt",
        "expected at most 65536 tokens at a time on a GPU, found 70000",
    ),
    "context_of_one": ({"context": 1}, "--context", "expected at least 2 tokens, found 1"),
    "context_beyond_the_models": ({"context": 10**9}, "--context", "expected at most the model's 1024 tokens"),
    "dtype_unknown": ({"dtype": "int4"}, "--dtype", "expected one of float32, float16, bfloat16, found 'int4'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_makes_no_sense_is_refused_by_its_name(case: str, model: Path) -> None:
    options, name, words = OPTIONS[case]
    error = refusal(model, **options)
    assert (error.place, words in error.problem) == (name, True)


def test_a_dump_folder_that_cannot_be_made_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJGC_DUMP", str(model / "dump"))
    error = refusal(model)
    assert (error.place, error.field) == (str(model / "dump"), "HJGC_DUMP")


def test_a_gpu_computes_with_numbers_of_two_bytes_and_says_so(model: Path) -> None:
    with pytest.raises(InputError) as caught:
        compile_model(model, model.with_name("plan.hjg"), **SMALL, targets=("cpu", "sm_90"), dtype="float32")
    assert str(caught.value).startswith("--dtype: expected float16 or bfloat16 on sm_90, found float32; choose one")
