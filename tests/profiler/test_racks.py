"""Two racks with a slow trunk: profiled, placed around, run both ways through the launcher.

Nodes are listed as a scheduler may list them, racks mixed, so the data-parallel groups of the naive
order cross the trunk. The planner learns from the profile alone which nodes are near.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from planner.cost.layer import Prices
from planner.formats.torch_launcher import write_bundle
from planner.layout.layout import Layout
from planner.plan import Plan
from planner.search.placed import PlacedStep, placed
from planner.search.recommend import Options, search
from planner.search.targets import TARGETS
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.machine import cluster_of
from planner.spec.profile import Profile, load_profile
from planner.tune.candidates import one_plan, priced
from planner.tune.run import read_launcher_log
from tests.profiler.namespaces import address, network, on_all, profiled

pytestmark = pytest.mark.slow
RACKS = [0, 1, 0, 1]
FAST_MBIT, TRUNK_MBIT = 400, 40
SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 2048, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
LAYOUT = Layout(dp=2, pp=2)  # gradients of a stage cross a pair of nodes, activations the others
STEPS = 5


@pytest.fixture(scope="module")
def racks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Profile]]:
    """Return a folder with the model, and the profile of all nodes while the network stands."""
    folder = tmp_path_factory.mktemp("racks")
    (folder / "small.json").write_text(json.dumps(SMALL))
    output = folder / "profile.json"
    words = ["--model", str(folder / "small.json"), "--seq-len", "64", "--micro-batch", "1"]
    with network([FAST_MBIT] * len(RACKS), RACKS, TRUNK_MBIT):
        profiled(len(RACKS), output, *words, "--tp", "1", "--cp", "1", "--largest", "256 KiB")
        yield folder, load_profile(output)


def plans(folder: Path, profile: Profile) -> tuple[PlacedStep, Plan, Plan]:
    """Return the placed step, its plan, and that of the same layout on the nodes as listed."""
    model, cluster, target = (
        load_model(folder / "small.json"),
        cluster_of(profile),
        TARGETS["torch"],
    )
    job = JobSpec(global_batch=4, seq_len=64, software=target.software)
    found = search(model, cluster, job, target, Options(keep=1))
    listed = priced(model, cluster, job, LAYOUT)
    assert listed is not None
    put = placed(Prices(model, cluster, job), listed)
    around = one_plan(model, put.prices.cluster, job, put.step, found)
    return put, around, one_plan(model, cluster, job, listed, found)


def measured_s(plan: Plan, folder: Path, name: str) -> float:
    """Train the plan with node rank r on its r-th host; return the step time."""
    bundle, log = folder / name, folder / f"{name}.jsonl"
    write_bundle(plan, bundle)
    nodes = [int(host.removeprefix("node")) for host in plan.hosts]
    command = ["bash", str(bundle / "launch.sh"), "--backend", "gloo", "--dtype", "bf16"]
    command += ["--steps", str(STEPS), "--log", str(log)]
    meet = {"NNODES": len(nodes), "NPROC_PER_NODE": 1, "MASTER_PORT": 29512}
    meet |= {"MASTER_ADDR": address(nodes[0])}
    words = ["env", *(f"{key}={value}" for key, value in meet.items()), f"PYTHON={sys.executable}"]
    on_all({n: [*words, f"NODE_RANK={rank}", *command] for rank, n in enumerate(nodes)}, folder)
    return read_launcher_log(log).step_time_s


def test_the_placed_run_is_faster_than_the_listed_one(racks: tuple[Path, Profile]) -> None:
    put, around, listed = plans(*racks)
    assert listed.hosts == ("node0", "node1", "node2", "node3")
    rack_of = {f"node{node}": rack for node, rack in enumerate(RACKS)}
    stages = [[rack_of[host] for host in around.hosts[first : first + 2]] for first in (0, 2)]

    # the slow links are seen, and the replicas of each stage stay within a rack
    slow = {frozenset((link.first, link.second)) for link in put.avoided}
    assert all(rack_of[a] != rack_of[b] for a, b in slow)
    assert slow
    assert all(len(set(stage)) == 1 for stage in stages)
    assert put.step.step_time_s < put.listed_step_time_s

    times = [measured_s(plan, racks[0], name)
             for plan, name in ((listed, "listed"), (around, "around"))]  # fmt: skip
    print(f"listed {times[0]:.3f} s, estimated {put.listed_step_time_s:.3f} s; "
          f"placed {times[1]:.3f} s, estimated {put.step.step_time_s:.3f} s")  # fmt: skip
    assert times[1] < 0.8 * times[0]
