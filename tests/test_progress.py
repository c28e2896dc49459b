from planner.progress import Listener, counted, listening, tell


def heard() -> tuple[list[tuple[str, int, int]], Listener]:
    said: list[tuple[str, int, int]] = []
    return said, lambda what, done, total: said.append((what, done, total))


def test_counts_items_and_says_so_before_each_and_after_the_last() -> None:
    said, listener = heard()

    with listening(listener):
        assert [*counted(["a", "b"], "letters")] == ["a", "b"]

    assert said == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]


def test_nobody_listens_outside() -> None:
    said, listener = heard()
    with listening(listener):
        pass

    tell("letters", 1, 2)

    assert [*counted([1, 2], "numbers")] == [1, 2]
    assert said == []
