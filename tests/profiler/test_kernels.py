"""Which products are measured: the model's own shapes, forward and both backward ones."""

import pytest

from planner.model.operations import Shape
from planner.profiler.kernels import Product, products
from planner.spec.huggingface import load_model

LLAMA = load_model("llama-3-8b")  # hidden 4096, 32 heads, 8 kv heads of 128, ffn 14336


def forward(found: tuple[Product, ...]) -> set[tuple[int, int, int]]:
    return {(one.m, one.n, one.k) for one in found if one.pass_ == "forward"}


@pytest.mark.parametrize(
    ("tp", "expected"),
    [
        (1, {(2048, 6144, 4096), (2048, 4096, 4096), (2048, 28672, 4096), (2048, 4096, 14336)}),
        (4, {(2048, 1536, 4096), (2048, 4096, 1024), (2048, 7168, 4096), (2048, 4096, 3584)}),
    ],
)
def test_a_dense_layer_has_four_products_and_the_head(
    tp: int, expected: set[tuple[int, int, int]]
) -> None:
    head = {(2048, 128256 // tp, 4096)}

    assert forward(products(LLAMA, Shape(1, 2048, tp=tp))) == expected | head


def test_backward_products_swap_the_dimensions() -> None:
    found = {(one.pass_, one.m, one.n, one.k) for one in products(LLAMA, Shape(1, 2048))}

    # y (2048, 6144) = x (2048, 4096) w: dx = dy w^T over 6144, dw = x^T dy over 2048
    assert ("dgrad", 2048, 4096, 6144) in found
    assert ("wgrad", 4096, 6144, 2048) in found
    assert {one[0] for one in found} == {"forward", "dgrad", "wgrad"}


def test_every_forward_product_has_backward_ones_of_equal_work() -> None:
    found = products(LLAMA, Shape(2, 1024, tp=2))
    work = {
        pass_: sorted({one.flops for one in found if one.pass_ == pass_})
        for pass_ in ("forward", "dgrad", "wgrad")
    }

    assert work["forward"] == work["dgrad"] == work["wgrad"]


def test_experts_are_measured_one_at_a_time() -> None:
    mixtral = load_model("mixtral-8x7b")  # 8 experts, 2 of them for each token, ffn 14336
    shapes = forward(products(mixtral, Shape(1, 4096, tp=2, ep=2, sequence_parallel=True)))

    # 4096 / 2 tokens of a rank are routed twice, evenly over 4 experts of each of 2 ranks:
    # 1024 rows for each local expert
    assert (1024, 28672, 4096) in shapes
    assert (1024, 4096, 14336) in shapes


def test_dense_and_expert_layers_are_both_measured() -> None:
    deepseek = load_model("deepseek-v3")
    shapes = forward(products(deepseek, Shape(1, 4096)))

    assert (4096, 2 * 18432, 7168) in shapes  # its three dense layers
    assert any(n == 2 * 2048 and k == 7168 for _, n, k in shapes)  # its experts


def test_products_are_distinct_and_smallest_first() -> None:
    found = products(LLAMA, Shape(1, 128, tp=8))

    assert len(set(found)) == len(found)
    assert [one.flops for one in found] == sorted(one.flops for one in found)
    assert all(min(one.m, one.n, one.k) >= 1 for one in found)
