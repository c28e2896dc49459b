import os
import stat
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from planner.errors import SpecError
from planner.spec.files import (
    data_path,
    load,
    read_document,
    shipped_or_file,
    write_whole,
)
from planner.spec.gpu import Bytes


class Wheel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    spokes: int = Field(gt=0, description="Wires of one wheel.")
    kind: str = "front"


class Bike(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    load_bytes: Bytes
    gears: int = Field(7, ge=1, le=30)
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    by_name: dict[str, Wheel] = {}
    electric: bool = False
    share: float = 0.5


GOOD = "name: city\nload_bytes: 20 MB\nwheels:\n  - {spokes: 32}\n"


def write(folder: Path, text: str, name: str = "bike.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, record: type[BaseModel] = Bike) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        load(record, path)
    return caught.value.problems


def test_reads_yaml_and_json(tmp_path: Path) -> None:
    yaml = load(Bike, write(tmp_path, GOOD))
    text = '{"name": "city", "load_bytes": "20 MB", "wheels": [{"spokes": 32}]}'
    json = load(Bike, write(tmp_path, text, "bike.json"))

    assert yaml == json
    assert yaml.load_bytes == 20_000_000


# text, what the only message must contain
BAD = [
    (GOOD + "gaers: 3\n", "bike.yaml:5: gaers: unknown field; did you mean 'gears'? Known here:"),
    (GOOD + "zzz: 3\n", ":5: zzz: unknown field; Known here: name, load_bytes, gears"),
    (GOOD.replace("20 MB", "20 parsecs"), ":2: load_bytes: '20 parsecs' is not a size; write a"),
    (GOOD.replace("20 MB", "20 MB/s"), "write a number and a unit, like '80 GB' or '64 GiB'"),
    (GOOD.replace("20 MB", "-20 MB"), ":2: load_bytes: '-20 MB' is not accepted; write a number g"),
    (GOOD + "gears: 31\n", ":5: gears: 31 is not accepted; write a number of at most 30"),
    (GOOD + "gears: 0\n", ":5: gears: 0 is not accepted; write a number of at least 1"),
    (GOOD + "gears: many\n", "gears: 'many' is not accepted; write a whole number, like 8"),
    (GOOD + "gears: 2.5\n", "gears: 2.5 is not accepted; write a whole number, like 8"),
    (GOOD + "share: half\n", "share: 'half' is not accepted; write a number, like 0.9"),
    (GOOD + "electric: perhaps\n", "electric: 'perhaps' is not accepted; write true or false"),
    (GOOD + "spare: round\n", "spare: 'round' is not accepted; write one field per line below"),
    (GOOD + "spare: {spoke: 3, spokes: 4}\n", "spare.spoke: unknown field; did you mean 'spokes'"),
    (GOOD + "by_name: {a: {spoke: 3, spokes: 4}}\n", "by_name.a.spoke: unknown field; did you"),
    (GOOD.replace("spokes: 32", "spokes: -1"), ":4: wheels.0.spokes: -1 is not accepted; write a"),
    (GOOD.replace("spokes: 32", "kind: x"), "wheels.0.spokes: missing; add it (Wires of one wh"),
    (GOOD.replace("name: city\n", ""), "name: missing; add it"),
    (GOOD.replace("name: city", "name: 5"), ":1: name: 5 is not accepted; write text"),
    (GOOD + "wheels: []\n", ":5: wheels: given twice; keep one of them"),
    ("", "bike.yaml:1: the file is empty; write one field per line"),
    ("- a\n- b\n", "the file holds a list; write one field per line"),
    ("name: [1, 2\nb: 3\n", "not valid YAML: "),
    ("name: 'city\n", "not valid YAML: "),
    ("name: 2024-13-45\n", "put that value in quotes"),
    ("a: \x00\n", "not valid YAML: "),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_message_names_file_line_field_value_and_remedy(
    tmp_path: Path, text: str, said: str
) -> None:
    (problem,) = refused(write(tmp_path, text))

    assert str(tmp_path) in problem
    assert said in problem


def test_all_violations_at_once(tmp_path: Path) -> None:
    text = "load_bytes: 1 X\ngaers: 3\nwheels:\n  - {spokes: 0}\n  - {spokes: y}\n"

    problems = refused(write(tmp_path, text))

    fields = sorted(problem.split(": ")[1] for problem in problems)
    assert fields == ["gaers", "load_bytes", "name", "wheels.0.spokes", "wheels.1.spokes"]


def test_truncated_json_names_line_and_column(tmp_path: Path) -> None:
    text = '{\n  "name": "city",\n  "load_bytes": "20 MB",\n'

    (problem,) = refused(write(tmp_path, text, "bike.json"))

    assert "bike.json:3:" in problem or "bike.json:4:" in problem
    assert "the file is cut short; copy it again" in problem


def test_wrong_json_in_the_middle_is_not_called_short(tmp_path: Path) -> None:
    (problem,) = refused(write(tmp_path, '{"name": city, "gears": 3}', "bike.json"))

    assert "bike.json:1:10: not valid JSON" in problem
    assert "correct the JSON there" in problem


def test_json_field_given_twice(tmp_path: Path) -> None:
    (problem,) = refused(write(tmp_path, '{"name": "a", "name": "b"}', "bike.json"))

    assert problem.endswith("name: given twice; keep one of them")


def test_json_number_too_long(tmp_path: Path) -> None:
    (problem,) = refused(write(tmp_path, '{"name": ' + "9" * 5000 + "}", "bike.json"))

    assert "write a shorter number" in problem


def test_json_line_with_tabs(tmp_path: Path) -> None:
    text = '{\n\t"name": "city",\n\t"load_bytes": "1 MB",\n\t"gears": 99\n}'

    (problem,) = refused(write(tmp_path, text, "bike.json"))

    assert "bike.json:4: gears: 99" in problem


def test_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD)

    (problem,) = refused(tmp_path / "bikes.yaml")

    assert "bikes.yaml: no such file; did you mean" in problem
    assert "bike.yaml?" in problem


def test_missing_file_in_missing_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "no" / "bike.yaml")[0].endswith("no such file; check the path")


def test_folder_and_binary(tmp_path: Path) -> None:
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"name: \xff\xfe")

    assert "cannot be read" in refused(tmp_path)[0]
    assert "not UTF-8 text (byte 6); save it as UTF-8" in refused(binary)[0]


def test_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bike.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())

    assert load(Bike, path).name == "city"


def test_yaml_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = GOOD + "by_name:\n  a: &a {spokes: 8}\n  b: *a\n  c:\n    <<: *a\n    kind: rear\n"

    bike = load(Bike, write(tmp_path, text))

    assert bike.by_name["b"].spokes == 8
    assert bike.by_name["c"].kind == "rear"


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    text = "name: !!python/object/apply:os.getcwd []\n"

    assert "not valid YAML" in refused(write(tmp_path, text))[0]


def test_line_of_unknown_place_is_the_parent(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, GOOD))

    assert document.line(("wheels", 0, "kind")) == 4
    assert document.line(("wheels", 9)) == 3
    assert document.line(()) == 1


def test_write_whole_replaces_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "old")
    write_whole(path, "new\n")

    assert path.read_text() == "new\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_write_whole_keeps_permissions_and_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)

    write_whole(link, "new")

    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_write_whole_new_file_follows_the_mask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", "x")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path, "old")

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "bad \ud800")

    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_write_into_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be written.*name a file in a writable folder"):
        write_whole(tmp_path / "no" / "plan.json", "x")


@pytest.mark.parametrize("kind", ["cluster_specs", "profiles"])
def test_shipped_data_is_found(kind: str) -> None:
    assert data_path(kind).is_dir()


def test_shipped_name_or_path(tmp_path: Path) -> None:
    known = {"alpha": tmp_path / "alpha.yaml", "beta": tmp_path / "beta.yaml"}

    assert shipped_or_file("cluster", "Alpha", known) == known["alpha"]
    assert shipped_or_file("cluster", "x/y.yaml", known).name == "y.yaml"
    with pytest.raises(SpecError) as caught:
        shipped_or_file("cluster", "alpah", known)
    assert caught.value.problems[0] == (
        "cluster 'alpah' is not shipped; did you mean 'alpha'? "
        "Give the path of a file, or one of: alpha, beta"
    )


def test_an_installed_wheel_finds_its_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_data" / "profiles").mkdir(parents=True)
    monkeypatch.setattr("planner.spec.files.resources.files", lambda package: tmp_path)

    assert data_path("profiles") == tmp_path / "_data" / "profiles"
    assert data_path("cluster_specs") == tmp_path.parent / "cluster_specs"
