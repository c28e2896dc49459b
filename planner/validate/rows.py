"""What a row of measured runs says of itself: its source, its outcome, how far to trust it."""

import re
from collections.abc import Mapping

from planner.validate.cells import number

Row = Mapping[str, str]

# A row with one of these flags says more of its source's noise than of any model.
TIME_DOUBTFUL = frozenset({"pathologically_slow", "noisy_40pct", "untuned_sanity_run", "ci_run"})
DOUBTFUL = TIME_DOUBTFUL | {
    "shape_unknown",
    "layout_product_not_n_gpus",
    "layout_does_not_divide_n_gpus",
    "source_dp_inconsistent",
    "batch_does_not_multiply",
    "proxy_layers",
}
_SHAPE = ("n_layers", "hidden", "seq_len", "gbs", "n_gpus")


def source(row: Row) -> str:
    """Return the prefix of a row's id that names its source."""
    return re.split(r"[-_]", row["id"])[0]


def sweep(row: Row) -> str:
    """Return the name of the comparable rows a row belongs to, or an empty string."""
    found = re.search(r"sweep=([^;\s]+)", row.get("notes", ""))
    return row.get("sweep_id") or (found[1] if found else "")


def is_sane(row: Row, doubtful: frozenset[str] = DOUBTFUL) -> bool:
    """Whether the source itself trusts the row."""
    return not doubtful & {flag.strip() for flag in row.get("flags", "").split(";")}


def ran_out_of_memory(row: Row) -> bool:
    """Whether the run is known to have ended for lack of memory."""
    return row.get("status") == "oom" or row.get("step_time_s") == "OOM"


def failed(row: Row) -> bool:
    """Whether the run did not finish, for whatever reason."""
    return ran_out_of_memory(row) or row.get("status", "") not in ("", "ok")


def measured_step_s(row: Row) -> float | None:
    """Return the step time of a finished run, from its speed where no time is stated."""
    if failed(row):
        return None
    cells = dict(row)
    if seconds := number(cells, "step_time_s"):
        return seconds
    speed, batch, seq_len, gpus = (
        number(cells, name) for name in ("tokens_per_s_per_gpu", "gbs", "seq_len", "n_gpus")
    )
    if not (speed and batch and seq_len and gpus):
        return None
    return batch * seq_len / (speed * gpus)


def states_its_shape(row: Row) -> bool:
    """Whether the row has layers, hidden size, sequence, batch and GPU count."""
    cells = dict(row)
    return all(number(cells, name) for name in _SHAPE)
