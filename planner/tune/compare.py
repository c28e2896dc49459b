"""Plans estimated and measured: which is fastest, how wrong, and what part is to blame."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from statistics import mean

from planner.plan import Plan
from planner.tune.run import Measured

COLUMNS = ("step_time_s", "global_batch", "seq_len", "nodes", "precision", "target", "tp", "cp",
           "pp", "vpp", "ep", "etp", "micro_batch", "zero", "recompute", "sequence_parallel",
           "name")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan, and what it reached."""

    plan: Plan
    measured: Measured

    @property
    def label(self) -> str:
        """The layout in one word."""
        return self.plan.to_layout().label()

    @property
    def error(self) -> float:
        """Estimated ÷ measured - 1."""
        return self.plan.estimate.step_time_s / self.measured.step_time_s - 1


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the least measured step time."""
    return min(trials, key=lambda trial: trial.measured.step_time_s)


def blame(trials: Sequence[Trial]) -> dict[str, float]:
    """Return, by part of the step, the correlation of its share of the estimate with the error.

    Near -1: the more of it, the more the estimate falls short. Parts that do not vary are left out.
    """
    errors = [trial.error for trial in trials]
    found = {}
    for part in trials[0].plan.estimate.parts_s if trials else ():
        estimates = [trial.plan.estimate for trial in trials]
        shares = [one.parts_s.get(part, 0.0) / one.step_time_s for one in estimates]
        if (value := _correlation(shares, errors)) is not None:
            found[part] = value
    return found


def _correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    centred = [[value - mean(one) for value in one] for one in (left, right)]
    sizes = [sum(value * value for value in one) ** 0.5 for one in centred]
    if len(left) < 3 or min(sizes) < 1e-9:
        return None
    product = sum(a * b for a, b in zip(*centred, strict=True))
    return float(product / (sizes[0] * sizes[1]))


def runs_csv(trials: Sequence[Trial]) -> str:
    """Return the trials as the lines that ``planner calibrate`` reads."""
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        writer.writerow(_line(trial))
    return text.getvalue()


def _line(trial: Trial) -> dict[str, object]:
    plan, layout = trial.plan, trial.plan.layout
    degrees = ("tp", "cp", "pp", "vpp", "ep", "etp", "micro_batch", "recompute",
               "sequence_parallel")  # fmt: skip
    above = [layout.shard_optimizer > 1, layout.shard_gradients > 1, layout.shard_weights > 1]
    return {name: getattr(layout, name) for name in degrees} | {
        "step_time_s": trial.measured.step_time_s,
        "global_batch": plan.job.global_batch,
        "seq_len": plan.job.seq_len,
        "nodes": plan.cluster.nodes,
        "precision": plan.job.precision,
        "target": "megatron" if plan.job.software.name.startswith("megatron") else "torch",
        "zero": sum(above),
        "name": trial.label,
    }
