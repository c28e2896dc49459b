"""Traces of torch's profiler: kernel seconds of products, and what is wrong in one."""

from pathlib import Path
from typing import Any

import pytest

from planner.errors import SpecError
from planner.formats.torch_trace import is_torch_trace, read_torch_trace
from tests.formats.measured import kernel, operator, torch_trace

FILE = Path("trace.json")
MM = [[64, 128], [128, 32]]


def read(*events: dict[str, Any], **changes: Any) -> Any:
    return read_torch_trace(FILE, torch_trace(list(events), **changes))


def products(*events: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    return {(p.m, p.n, p.k, p.dtype): p.seconds for p in read(*events).gemms}


def test_a_product_is_the_time_of_its_kernels() -> None:
    reading = read(operator(1, "aten::mm", MM), kernel(1, 30.0), kernel(1, 5.0, "splitK reduce"))

    (product,) = reading.gemms
    assert (product.m, product.n, product.k, product.dtype) == (64, 32, 128, "bf16")
    assert product.seconds == pytest.approx(35e-6)
    assert (reading.device, reading.world_size) == ("NVIDIA H100 80GB HBM3", 16)
    assert reading.memory_bytes == 85 * 10**9
    assert reading.source == "torch trace trace.json"
    assert is_torch_trace(torch_trace([]))


def test_products_of_one_shape_are_their_median() -> None:
    events = [operator(number, "aten::mm", MM) for number in (1, 2, 3)]
    kernels = [kernel(number, micros) for number, micros in ((1, 10), (2, 12), (3, 900))]

    assert products(*events, *kernels) == {(64, 32, 128, "bf16"): pytest.approx(12e-6)}


# operator, input shapes, dtype, the product
OPERATORS: list[tuple[str, Any, str, tuple[Any, ...] | None]] = [
    ("aten::mm", MM, "c10::BFloat16", (64, 32, 128, "bf16")),
    ("aten::mm", MM, "c10::Half", (64, 32, 128, "fp16")),
    ("aten::addmm", [[32], *MM, [], []], "c10::BFloat16", (64, 32, 128, "bf16")),
    ("aten::_scaled_mm", [*MM, [], []], "c10::Float8_e4m3fn", (64, 32, 128, "fp8")),
    ("aten::mm", MM, "float", None),
    ("aten::mm", [[64, 128], [64, 32]], "c10::BFloat16", None),
    ("aten::mm", [[64, 128]], "c10::BFloat16", None),
    ("aten::mm", [[], []], "c10::BFloat16", None),
    ("aten::mm", None, "c10::BFloat16", None),
    ("aten::bmm", [[2, 64, 128], [2, 128, 32]], "c10::BFloat16", None),
    ("aten::add", MM, "c10::BFloat16", None),
]


@pytest.mark.parametrize(("name", "dims", "dtype", "product"), OPERATORS)
def test_operators_that_are_products(
    name: str, dims: Any, dtype: str, product: tuple[Any, ...] | None
) -> None:
    known = (operator(9, "aten::mm", [[8, 8], [8, 8]]), kernel(9, 1))

    found = products(*known, operator(1, name, dims, dtype), kernel(1, 7.0))

    assert found.pop((8, 8, 8, "bf16")) == pytest.approx(1e-6)
    assert found == ({} if product is None else {product: pytest.approx(7e-6)})


def test_what_is_left_out_is_said() -> None:
    events = [operator(1, "aten::mm", MM), kernel(1, 7.0), operator(2, "aten::mm", None)]

    assert read(*events).notes == (
        "1 products without shapes or in other dtypes are not taken over",
    )


def test_a_trace_without_device_and_group_is_read() -> None:
    reading = read(operator(1, "aten::mm", MM), kernel(1, 7.0), deviceProperties=[],
                   distributedInfo=None)  # fmt: skip

    assert (reading.device, reading.world_size, reading.memory_bytes) == ("GPU of a trace", 1, None)


BAD: list[tuple[list[dict[str, Any]], str]] = [
    ([], "no GPU kernels; profile with activities=[CPU, CUDA]"),
    ([operator(1, "aten::mm", MM)], "no GPU kernels"),
    ([kernel(1, 7.0)], "none of aten::mm, aten::addmm, aten::_scaled_mm was run"),
    ([operator(1, "aten::mm", None), kernel(1, 7.0)], "1 products without shapes"),
    ([operator(1, "aten::mm", MM), kernel(2, 7.0)], "1 products, none tied to its kernels"),
    ([operator(1, "aten::mm", MM), kernel(1, -7.0)], "traceEvents.1.dur: -7.0 is no duration"),
    ([operator(1, "aten::mm", MM), kernel(1, "7")], "traceEvents.1.dur: '7' is no duration"),
]  # fmt: skip


@pytest.mark.parametrize(("events", "said"), BAD)
def test_what_is_wrong_is_said_with_its_remedy(events: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(*events)

    assert said in str(caught.value)
    assert str(caught.value).startswith("trace.json: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"traceEvents": [', "trace.json:1:18: not valid JSON"), ("{}", "traceEvents: missing")],
)
def test_a_file_that_is_no_trace(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_torch_trace(FILE, text)


def test_the_trace_of_this_torch_has_the_fields_that_are_read(tmp_path: Path) -> None:
    """On a CPU there are no kernels; a kernel is added to the operator that torch recorded."""
    torch = pytest.importorskip("torch")
    import json

    left, right = (torch.ones(shape, dtype=torch.bfloat16) for shape in MM)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profiled:
        torch.mm(left, right)
    file = tmp_path / "trace.json"
    profiled.export_chrome_trace(str(file))
    data = json.loads(file.read_text())
    assert is_torch_trace(file.read_text())
    with pytest.raises(SpecError, match="no GPU kernels"):
        read_torch_trace(file, file.read_text())
    recorded = next(event for event in data["traceEvents"] if event.get("name") == "aten::mm")
    data["traceEvents"].append(kernel(recorded["args"]["External id"], 3.0))

    (product,) = read_torch_trace(file, json.dumps(data)).gemms

    assert (product.m, product.n, product.k, product.dtype) == (64, 32, 128, "bf16")
    assert product.seconds == pytest.approx(3e-6)
