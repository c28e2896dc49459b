"""Launch scripts as text: our words are bash's words, and what only a run can tell stays open."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formats.shell import read_script
from planner.formats.shell_values import OPEN, UNSET, evaluate_sum, open_names
from tests.properties.strategies import quick

# scripts that end in ``show WORDS``; bash and the reader must agree on the words
SCRIPTS = {
    "plain": "show a b  c",
    "quotes": """show 'a b' "c d" e\\ f "" 'it'"'"'s' $'x'""",
    "variables": 'A=1\nB=x$A\nC=\'$A\'\nshow $A ${B} "$C" "a${A}b" pre$A-post',
    "defaults": 'A=${X:-3}\nB=${A:-4}\nC=${Y-"a b"}\nE=\nshow $A $B "$C" "${E:-e}" "[${E-e}]"',
    "nested defaults": 'A=${X:-${Y:-deep}}\nB=${X:-"$A er"}\nshow "$A" "$B"',
    "alternative": 'A=1\nshow "${A:+set}" "[${X:+set}]"',
    "assigned default": ": ${A:=7}\nshow $A",
    "splitting": "A='one  two'\nshow $A \"$A\" x$A",
    "empty": "A=\nshow $A b\nshow \"$A\" b ''",
    "array": 'A=(one "two three" $X four)\nshow "${A[@]}" ${A[@]} end',
    "array grows": 'A=()\nA+=(--x 1)\nB=y\nA+=("--$B 2")\nshow ${A[@]}',
    "array over lines": "A=(\n  --a 1 # first\n  # nothing\n  --b 2\n)\nshow ${A[@]}",
    "array of itself": 'A=(1 2)\nA=("${A[@]}" 3)\nshow "${A[@]}"',
    "text grows": "A=x\nA+=y\nA+=' z'\nshow \"$A\"",
    "sum": "A=4\nB=3\nshow $((A*B)) $(( $A + ${B} - 1 )) $((A/B)) $((A % B)) $(((A+1)*2))",
    "continued": "show a \\\n  b \\\n  c",
    "continued text": 'A="--x 1 \\\n --y 2"\nshow $A',
    "text over lines": 'A="\n  --x 1\n  --y 2\n"\nshow $A',
    "export": "export A=1 B=2\ndeclare -x C=3\nshow $A $B $C",
    "unset": "A=1\nunset A\nshow ${A:-gone}",
    "if": 'A=fp8\nif [[ "$A" == "fp8" ]]; then B=1; else B=2; fi\nshow $B',
    "else": "A=3\nif [ $A -gt 4 ]; then\n  B=1\nelse\n  B=2\nfi\nshow $B",
    "elif": "M=b\nif [ $M = a ]; then B=1\nelif [ $M = b ]; then B=2\nelse B=3\nfi\nshow $B",
    "nested if": "A=1\nif [ $A -eq 1 ]; then\n if [ $A -ne 1 ]; then B=x; else B=y; fi\nfi\n"
    "show $B",
    "negated": 'if [ ! -z "$X" ]; then B=1; else B=2; fi\nshow $B',
    "or": 'A=m\nif [[ "$A" == "k" ]] || [[ "$A" == "m" ]] || [[ -z "$A" ]]; then B=1; fi\nshow $B',
    "and": "A=2\nif [ $A -ge 2 ] && [ $A -le 1 ]; then B=1; else B=0; fi\nshow $B",
    "skipped loop": "while [[ $# -gt 0 ]]; do A=1; shift; done\nA=${A:-0}\nshow $A",
    "function": "help() { echo usage; A=2; }\nA=1\nshow $A",
    "redirection": "show a 2> /dev/null\nshow b 2>&1",
    "comment": "A=1 # B=2\nshow $A#x # y",
    "here-document": "cat <<EOF > /dev/null\nshow inside\nEOF\nshow after",
    "positional": "A=${1:-none}\nshow $A $2 end",
    "semicolons": "A=1; B=2; show $A; show $B",
    "braces in quotes": 'show "{a}" \'$(x)\' "}"',
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_words_are_those_of_bash(script: str) -> None:
    shown = 'show() { printf \'%s\\0\' "$#" "$@"; }\n'
    result = subprocess.run(
        ["bash", "-c", shown + script], env={}, capture_output=True, text=True, check=True
    )

    read = read_script(Path("x.sh"), script)
    ours = [command.words[1:] for command in read.commands if command.words[0] == "show"]
    # an unset variable is nothing to bash; the reader names it
    ours = [tuple(word for word in words if not word.startswith(UNSET)) for words in ours]
    text = "".join(f"{word}\0" for words in ours for word in (str(len(words)), *words))
    assert text == result.stdout


SAFE = st.text(alphabet="ab1-_=,.+*[]() '\"\\$`|&;<>#{}~!?\n\t", max_size=12)


@quick
@given(words=st.lists(SAFE, min_size=1, max_size=5))
def test_quoted_words_come_back(words: list[str]) -> None:
    import shlex

    script = "A=(\n" + "\n".join(shlex.quote(word) for word in words) + '\n)\nshow "${A[@]}"'

    assert read_script(Path("x.sh"), script).commands[-1].words[1:] == tuple(words)


@quick
@given(text=st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    read_script(Path("x.sh"), text)


# scripts whose value of A only a run can tell
OPENED = {
    "command": "A=$(hostname)\nshow $A",
    "backticks": "A=`hostname`\nshow $A",
    "file test": "A=1\nif [ -f there ]; then A=2; fi\nshow $A",
    "case": "A=1\ncase $X in a) A=2;; esac\nshow $A",
    "loop": "A=1\nfor i in 1 2; do A=$i; done\nshow $A",
    "cut": "B=abc\nA=${B%c}\nshow $A",
    "unset": "show $A",
    "sum": "A=$((B * 2))\nshow $A",
}


@pytest.mark.parametrize("script", OPENED.values(), ids=OPENED.keys())
def test_what_only_a_run_can_tell_stays_open(script: str) -> None:
    words = read_script(Path("x.sh"), script).commands[-1].words

    assert len(words) == 2
    assert open_names(words[1])
    assert words[1][0] in (UNSET, OPEN)


@pytest.mark.parametrize("name", ["file test", "case", "loop"])
def test_a_branch_that_is_not_followed_is_said(name: str) -> None:
    assert any("A" in remark for remark in read_script(Path("x.sh"), OPENED[name]).remarks)


@pytest.mark.parametrize("name", ["file test", "loop", "unset"])
def test_the_user_decides_what_is_open(name: str) -> None:
    read = read_script(Path("x.sh"), OPENED[name], {"A": "9"})

    assert read.commands[-1].words == ("show", "9")


def test_a_sourced_file_is_read_where_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.sh").write_text("export A=5\n")
    script = tmp_path / "run.sh"

    read = read_script(script, ". `pwd`/config.sh\nsource missing.sh\nshow $A")

    assert read.commands[-1].words == ("show", "5")
    assert read.remarks == ["line 2: missing.sh is not there to be read"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("4 * (8 - 1)", 28), ("-3", -3), ("7 / 2", 3), ("1/0", None), ("f(1)", None), ("2.5", None)],
)
def test_sums(text: str, value: int | None) -> None:
    assert evaluate_sum(text) == value
