"""How far the measurement is: a bar with the time that is left, on stderr of rank 0."""

import sys
import time

BAR = 24
EVERY_S = 0.5


def duration(seconds: float) -> str:
    """Return minutes and seconds as people say them."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Progress:
    """Counts tasks and scales the first guess of their time by how it came out so far."""

    def __init__(self, speaks: bool, tasks: int, guess_s: float) -> None:
        self._speaks, self._tasks, self._guess_s = speaks, tasks, guess_s
        self._done, self._guessed_s = 0, 0.0
        self._started = time.monotonic()
        self._shown = -EVERY_S

    def begin(self, done: int) -> None:
        """Say what is ahead; ``done`` tasks were measured before."""
        self._done = done
        again = f", {done} of them measured before" if done else ""
        self.say(f"{self._tasks} measurements{again}, about {duration(self._guess_s)}")

    def left_s(self) -> float:
        """Seconds that are left, by the guess and by what the tasks so far really took."""
        spent_s = time.monotonic() - self._started
        scale = (spent_s + 5.0) / (self._guessed_s + 5.0)  # the first tasks tell little
        return (self._guess_s - self._guessed_s) * scale

    def on(self, what: str) -> None:
        """Show the bar, not more often than one can read."""
        now = time.monotonic()
        if now - self._shown < EVERY_S:
            return
        self._shown = now
        share = self._done / self._tasks
        bar = "#" * round(BAR * share) + "." * (BAR - round(BAR * share))
        left = duration(self.left_s())
        self.say(f"[{bar}] {self._done}/{self._tasks}, {left} left: {what}")

    def done(self, guess_s: float) -> None:
        """Count a task that was guessed to take so long."""
        self._done += 1
        self._guessed_s += guess_s

    def say(self, text: str) -> None:
        """Print one line, on rank 0."""
        if self._speaks:
            print(text, file=sys.stderr, flush=True)
