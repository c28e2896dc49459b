"""Checkpoint directories, read and named with the standard library alone.

``DIR/step-00000010`` holds what ``checkpoint.save`` writes after step 10, and ``job.json``, which
says what job it is of. It is complete when ``.metadata``, written last, is there.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .plan_file import PlanFile

_JOB, _COMPLETE = "job.json", ".metadata"


def step_directory(directory: Path, step: int) -> Path:
    """Return where the state after ``step`` is saved."""
    return directory / f"step-{step:08d}"


def newest(directory: Path) -> Path | None:
    """Return the complete checkpoint of the latest step in ``directory``; None without one."""
    found = (path.parent for path in directory.glob(f"step-*/{_COMPLETE}"))
    return max(found, key=saved_step, default=None)


def saved_step(checkpoint: Path) -> int:
    """Return the step after which ``checkpoint`` was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def file_problems(path: Path, token_bytes: int, seq_len: int) -> list[str]:
    """Return why ``path`` cannot be read as tokens for sequences of ``seq_len``; reads no token."""
    if not path.is_file():
        return [f"--data {path}: is no file; name a file of tokens"]
    size = path.stat().st_size
    if size % token_bytes:
        return [
            f"--data {path}: {size} bytes are no whole number of tokens of {token_bytes} bytes; "
            f"try --token-bytes {6 - token_bytes}"
        ]
    if size // token_bytes <= seq_len:
        return [
            f"--data {path}: holds {size // token_bytes} tokens, a sequence and its last target "
            f"take {seq_len + 1}"
        ]
    return []


def job_facts(
    plan: PlanFile, seed: int, optimizer: str, data: Path | None = None
) -> dict[str, Any]:
    """Return what must stay the same over a job; the layout may change."""
    same: dict[str, Any] = {"global_batch": plan.global_batch, "seq_len": plan.seq_len}
    if data is not None:
        same["data_bytes"] = data.stat().st_size if data.is_file() else 0  # it may be moved
    facts = asdict(plan.model) | same | {"seed": seed, "optimizer": optimizer}
    return dict(json.loads(json.dumps(facts)))  # tuples become lists, as in the file


def write_job(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Say in ``checkpoint`` what job it is of."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2) + "\n"
    (checkpoint / _JOB).write_text(text, encoding="utf-8")


def resume_problems(directory: Path, facts: dict[str, Any]) -> list[str]:
    """Return every reason why the newest checkpoint cannot be continued by the job ``facts``."""
    if directory.exists() and not directory.is_dir():
        return [f"--checkpoint {directory}: is a file; name a directory"]
    checkpoint = newest(directory)
    if checkpoint is None:
        return []
    try:
        saved = json.loads((checkpoint / _JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{checkpoint / _JOB}: cannot be read ({error}); name another --checkpoint"]
    return [
        f"{checkpoint / _JOB}: saved with {name}={saved.get(name)!r}, this job has {value!r}; "
        "name another --checkpoint directory"
        for name, value in facts.items()
        if saved.get(name) != value
    ]
