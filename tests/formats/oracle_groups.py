"""Asks megatron-core which ranks form which group, on a group of 64 that exists in name only.

Reads JSON on stdin: a list of (tp, cp, pp, ep, etp). Prints for each, and each rank, the ranks of
its groups by name.
"""

import contextlib
import io
import json
import sys

import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

WORLD = 64


def asked(tp: int, cp: int, pp: int, ep: int, etp: int, rank: int) -> dict[str, list[int]]:
    """Return the groups of ``rank``."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=WORLD)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=cp,
        expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
        create_gloo_process_groups=False,
    )  # fmt: skip
    made = {
        "tp": parallel_state.get_tensor_model_parallel_group(),
        "cp": parallel_state.get_context_parallel_group(),
        "dp": parallel_state.get_data_parallel_group(),
        "pp": parallel_state.get_pipeline_model_parallel_group(),
        "cp dp": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "ep": parallel_state.get_expert_model_parallel_group(),
        "etp": parallel_state.get_expert_tensor_parallel_group(),
        "edp": parallel_state.get_expert_data_parallel_group(),
    }
    found = {name: dist.get_process_group_ranks(group) for name, group in made.items()}
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        answers = [[asked(*degrees, rank) for rank in ranks] for degrees, ranks in
                   json.load(sys.stdin)]  # fmt: skip
    json.dump(answers, sys.stdout)
