"""Watts of a training job, by what its GPUs do.

A GPU draws ``idle + (rated - idle) u``. Sources of every number: ``profiles`` of the GPU, and the
measured servers named here.
"""

from collections.abc import Mapping

IDLE = 0.15  # of rated power: A100 80 of 400 W, GB300 233 of 1400 W
# Cards in long matrix products draw 338 to 383 of 400 W (FlagPerf, A100), memory copies 239 W,
# all-reduce 146 W; a step is not all products, so compute counts 0.8.
COMPUTE, MEMORY, WAITING = 0.8, 0.55, 0.35
USE = {"compute": COMPUTE, "recompute": COMPUTE, "optimizer": MEMORY}  # all else waits
# The rest of a server (CPUs, NICs, fans) ÷ rated power of its GPUs: 0.20 and 0.41 on 8 x A100
# (FlagPerf: 3,354 W in bf16 products, 4,368 W in tf32), 0.55 on DGX H100 (0.76 of 10.2 kW in
# compute-bound training, arXiv 2506.14551); the median.
HOST = 0.41
NETWORK_AND_STORAGE = 0.125  # of the servers' power: 10 to 15 %
# Power usage effectiveness: Google 1.09, AWS 1.15, Azure 1.16, Meta 1.08 (reports of 2024); the
# industry's average is 1.56 (Uptime Institute).
PUE = 1.12


def training_use(parts_s: Mapping[str, float]) -> float:
    """Return the mean ``u`` of a step from its seconds by cause (``StepEstimate.parts_s``)."""
    busy = sum(max(0.0, seconds) * USE.get(cause, WAITING) for cause, seconds in parts_s.items())
    return busy / sum(max(0.0, seconds) for seconds in parts_s.values())


def server_w_per_gpu(gpu_power_w: float, use: float) -> float:
    """Return the watts of a server for each of its GPUs, each of rated power ``gpu_power_w``."""
    return gpu_power_w * (IDLE + (1 - IDLE) * use + HOST)


def facility_w_per_gpu(gpu_power_w: float, use: float, pue: float = PUE) -> float:
    """Return the watts drawn from the grid for each GPU: server, network, storage, cooling."""
    return server_w_per_gpu(gpu_power_w, use) * (1 + NETWORK_AND_STORAGE) * pue
