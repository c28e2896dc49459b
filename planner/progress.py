"""How far long work is, for whoever listens: nobody, unless a command on a terminal does."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]  # what is counted, how many are done, of how many
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have ``listener`` told of all progress made inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Tell the listener, if there is one; ``total`` may change from one call to the next."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def counted(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield ``items``, telling before each how many are done, and after the last."""
    for done, item in enumerate(items):
        tell(what, done, len(items))
        yield item
    tell(what, len(items), len(items))
