"""Errors a user can cause; each says what is wrong, where, and what would be right.

PlannerError
 ├─ SpecError      a model, cluster, job, profile or plan file is not valid        exit code 2
 ├─ LayoutError    a layout is not legal for the model, cluster or target          exit code 2
 └─ NoPlanError    the honest answer is "no": nothing fits                         exit code 1
"""

from collections.abc import Iterable


class PlannerError(Exception):
    """Base of every error this package raises on purpose.

    ``problems`` holds one finished sentence for each violation; they are reported all at once.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class SpecError(PlannerError):
    """A model, cluster, job, profile or plan file is not valid."""


class LayoutError(PlannerError):
    """A layout is not legal for the model, the cluster or the target."""


class NoPlanError(PlannerError):
    """Nothing fits: the question was good and the answer is no."""

    exit_code = 1
