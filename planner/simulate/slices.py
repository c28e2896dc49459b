"""Slices of a simulated step: what runs on which stream of which pipeline rank, and when."""

from typing import NamedTuple

COMPUTE, LAYERS, PIPELINE = "compute", "layers", "pipeline transfers"
TENSOR, CONTEXT, EXPERT = "tensor parallel", "context parallel", "expert parallel"
DATA, PREFETCH, BUCKETS = "data parallel", "sharded weights", "buckets"
TO_HOST, FROM_HOST = "device to host", "host to device"
TO_SSD, FROM_SSD = "SSD writes", "SSD reads"
CPU, OFFLOAD = "host CPU", "offload"
STREAMS = (
    COMPUTE, LAYERS, TENSOR, CONTEXT, EXPERT, PIPELINE, DATA, PREFETCH, BUCKETS,
    TO_HOST, FROM_HOST, TO_SSD, FROM_SSD, CPU, OFFLOAD,
)  # fmt: skip
# what follows the passes of a rank, in this order
TAIL = {
    "gradient reduction": DATA,
    "host offload": OFFLOAD,
    "optimizer": COMPUTE,
    "weight gathering": DATA,
}


class Slice(NamedTuple):
    """Something that runs on one stream of one pipeline rank.

    ``kind`` is F, B, W, send, one of ``TAIL`` or, of details, what is exchanged or copied;
    micro-batch and chunk are -1 where there is none.
    """

    rank: int
    stream: str
    name: str
    kind: str
    start_s: float
    end_s: float
    micro_batch: int = -1
    chunk: int = -1
