"""Measurements of other programs as a profile: the format of each file, and several as one."""

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from planner.errors import SpecError
from planner.formats.nccl_tests import is_nccl_tests, read_nccl_tests
from planner.formats.reading import Reading
from planner.formats.simumax import is_simumax, read_simumax
from planner.formats.torch_trace import is_torch_trace, read_torch_trace
from planner.spec.files import read_text
from planner.spec.profile import Profile

Reader = Callable[[Path, str, str | None], Reading]
FORMATS: dict[str, tuple[Callable[[str], bool], Reader]] = {
    "nccl-tests": (is_nccl_tests, read_nccl_tests),
    "simumax": (is_simumax, read_simumax),
    "torch-trace": (is_torch_trace, read_torch_trace),
}


def import_profile(
    files: Sequence[Path], form: str | None = None, collective: str | None = None
) -> tuple[Profile, tuple[str, ...]]:
    """Return the profile of one machine that the files measured, and what was left out.

    ``form`` names the format of all files, else each is recognised; ``collective`` names the test
    of nccl-tests logs that do not. All files must name the same device.
    """
    if form is not None and form not in FORMATS:
        raise SpecError(f"--format: {form!r} is not read; use one of {', '.join(FORMATS)}")
    readings: list[Reading] = []
    problems: list[str] = []
    for file in files:
        try:
            readings.append(_read(file, form, collective))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    devices = {reading.device: file for file, reading in zip(files, readings, strict=True)}
    if len(devices) > 1:
        said = "; ".join(f"{file}: {device}" for device, file in devices.items())
        raise SpecError(f"files of different devices: {said}; import each into its own profile")
    memory = [reading.memory_bytes for reading in readings if reading.memory_bytes]
    profile = Profile(
        device=readings[0].device,
        world_size=max(reading.world_size for reading in readings),
        backend=readings[0].backend,
        source="; ".join(reading.source for reading in readings),
        memory_bytes=memory[0] if memory else None,
        links=tuple(link for reading in readings for link in reading.links),
        gemms=tuple(product for reading in readings for product in reading.gemms),
        attention=tuple(one for reading in readings for one in reading.attention),
        kernels=tuple(one for reading in readings for one in reading.kernels),
    )
    notes = tuple(
        f"{file}: {note}"
        for file, reading in zip(files, readings, strict=True)
        for note in reading.notes
    )
    return profile, notes


def _read(file: Path, form: str | None, collective: str | None) -> Reading:
    text = _text(file)
    name = form or next((name for name, (is_it, _) in FORMATS.items() if is_it(text)), None)
    if name is None:
        raise SpecError(
            f"{file}: none of the formats {', '.join(FORMATS)}; say which it is with --format"
        )
    return FORMATS[name][1](file, text, collective)


def _text(file: Path) -> str:
    """Return the text of a file, unpacked where its name ends with .gz."""
    if file.suffix != ".gz" or not file.is_file():
        return read_text(file)
    try:
        return gzip.decompress(file.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: cannot be unpacked: {error}; copy the file again") from None
