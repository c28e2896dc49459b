import pytest

from planner.errors import LayoutError, NoPlanError, PlannerError, SpecError


@pytest.mark.parametrize(
    ("error", "code"), [(SpecError, 2), (LayoutError, 2), (NoPlanError, 1), (PlannerError, 2)]
)
def test_exit_codes(error: type[PlannerError], code: int) -> None:
    assert error("x").exit_code == code
    assert issubclass(error, PlannerError)


def test_one_sentence_is_one_problem() -> None:
    error = SpecError("a is wrong; write b")

    assert error.problems == ("a is wrong; write b",)
    assert str(error) == "a is wrong; write b"


def test_all_problems_are_kept_in_order() -> None:
    error = SpecError(f"problem {number}" for number in range(3))

    assert error.problems == ("problem 0", "problem 1", "problem 2")
    assert str(error) == "problem 0\nproblem 1\nproblem 2"
