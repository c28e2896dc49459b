"""The log of allocations, on programs whose memory is plain to see."""

import pytest
import torch
from torch import Tensor

from benchmarks.trace import Block, Memory

KIB = 1024  # bytes of 256 fp32 numbers


def live(memory: Memory) -> list[Block]:
    return [block for block in memory.log.blocks if block.died is None]


def test_counts_storages_in_blocks_of_512_bytes() -> None:
    with Memory() as memory:
        kept = [torch.zeros(256), torch.zeros(1)]

    assert [block.size for block in live(memory)] == [KIB, 512]
    assert len(kept) == 2


def test_view_is_no_allocation() -> None:
    with Memory() as memory:
        table = torch.zeros(256)
        rows = table.view(16, 16)[3:]

    assert [block.size for block in memory.log.blocks] == [KIB]
    assert rows.shape == (13, 16)


def test_dead_tensor_is_freed_when_it_dies() -> None:
    with Memory() as memory:
        first = torch.zeros(256)
        del first
        second = torch.zeros(512)
    dead, alive = memory.log.blocks

    assert dead.died is not None
    assert dead.died < alive.born
    assert second.shape == (512,)


def test_resize_frees_and_allocates_under_the_same_role() -> None:
    with Memory() as memory:
        tensor = torch.zeros(256)
        memory.name(tensor, "gathered weights")
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(2 * KIB)
    sizes = [(block.size, block.role, block.died is None) for block in memory.log.blocks]

    role = "gathered weights"
    assert sizes == [(KIB, role, False), (0, role, False), (2 * KIB, role, True)]


def test_storage_resizes_as_before_after_the_log_ends() -> None:
    before = torch.UntypedStorage.resize_
    with Memory():
        assert torch.UntypedStorage.resize_ is not before

    assert torch.UntypedStorage.resize_ is before


def test_tells_forward_from_backward() -> None:
    weight = torch.ones(256, requires_grad=True)
    with Memory() as memory:
        memory.phase = "step"
        (weight * 2).sum().backward()  # type: ignore[no-untyped-call]

    assert [phase for _, phase in memory.log.turns][:2] == ["forward", "backward"]
    assert {block.phase for block in live(memory)} == {"backward"}  # the gradient


def test_knows_what_outlives_its_pass() -> None:
    weight = torch.ones(256, requires_grad=True)
    with Memory() as memory:
        memory.phase = "step"
        product: Tensor = weight.exp()  # exp keeps its result
        (product + 1).sum().backward()  # type: ignore[no-untyped-call]
        del product
    kept, passing = memory.log.blocks[:2]

    assert kept.outlives_pass
    assert not passing.outlives_pass


def test_counts_products() -> None:
    with Memory() as memory:
        torch.zeros(3, 5) @ torch.zeros(5, 7)

        assert memory.log.flops == 2 * 3 * 5 * 7
        memory.clear_counts()

    assert memory.log.flops == 0


def test_closed_eyes_see_nothing() -> None:
    with Memory() as memory:
        with memory.closed_eyes():
            unseen = torch.zeros(256)
        seen = torch.zeros(512)

    assert [block.size for block in memory.log.blocks] == [2 * KIB]
    assert len(unseen) < len(seen)


@pytest.mark.parametrize("device", ["meta"])
def test_shapes_without_memory_do_not_count(device: str) -> None:
    with Memory() as memory:
        shape = torch.zeros(256, device=device)

    assert not memory.log.blocks
    assert shape.is_meta
