"""Files are written whole: a reader sees the old content or the new one, never a part."""

import os
import tempfile
from pathlib import Path

from planner.errors import SpecError


def write_whole(path: Path, text: str, executable: bool = False) -> Path:
    """Write ``text`` to a temporary file beside ``path``, then rename it over; return ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod((0o777 if executable else 0o666) & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def refuse_to_overwrite(directory: Path) -> None:
    """Raise ``SpecError`` for a file, or a directory that holds something."""
    if directory.exists() and not directory.is_dir():
        raise SpecError(f"{directory}: is a file; name a directory for the bundle")
    if directory.is_dir() and any(directory.iterdir()):
        raise SpecError(f"{directory}: is not empty; name a new directory, or allow overwriting")
