"""One example for each command, as its ``--help`` shows it. Tests parse every one."""

JOB = "--global-batch 512 --seq-len 8192"
ONE = f"llama-3-70b --cluster dgx-h100 --nodes 8 {JOB}"

EXAMPLES = {
    "recommend": (f"recommend {ONE} --output plan.json",
                  f"recommend config.json --profile h100.json {JOB} --max-tp 8"),
    "replan": ("replan plan.json --nodes 7 --output plan-7.json",),
    "min-gpus": (f"min-gpus llama-3-70b --cluster dgx-h100 {JOB}",),
    "max-seq": ("max-seq llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64",),
    "check": (f"check {ONE} --tp 8 --pp 4", "check train.sh --cluster dgx-h100 --nodes 8",
              "check plan.json"),
    "explain": ("explain memory plan.json",),
    "explain memory": (f"explain memory {ONE} --tp 4 --pp 4", "explain memory plan.json"),
    "explain experts": ("explain experts mixtral-8x7b --loads zipf:1.2 --cluster dgx-h100 "
                        "--nodes 4 --global-batch 256 --seq-len 4096 --ep 8",),
    "explain speed": (f"explain speed {ONE} --tp 8 --pp 4 --measured 70s",
                      "explain speed plan.json"),
    "cost": ("cost plan.json --tokens 2T --price 2.5",),
    "report": ("report plan.json --output report.html",),
    "export": ("export plan.json --target megatron --output run",),
    "convert": ("convert train.sh --to torchtitan --output train.toml",),
    "simulate": ("simulate plan.json --trace step.json.gz",),
    "validate": ("validate runs.csv --output estimates.json",),
    "tune": ("tune plan.json --top 3 --steps 10 --output fastest.json",),
    "calibrate": ("calibrate runs.csv --cluster dgx-h100 --output factors.json",),
    "models": ("models",),
    "clusters": ("clusters",),
    "gpus": ("gpus --json",),
    "profile": ("profile llama-3-8b --nproc 8 --output h100.json",),
    "profile measure": ("profile llama-3-8b --nproc 8 --output h100.json",),
    "profile show": ("profile show h100.json --cluster dgx-h100",),
    "profile diff": ("profile diff monday.json tuesday.json --least 5%",),
    "profile merge": ("profile merge one.json two.json --output both.json",),
    "profile import": ("profile import all_reduce.log --output h100.json",),
}  # fmt: skip


def examples(name: str) -> str:
    """Return the end of the help of a command; the first line keeps the others as they are."""
    lines = [f"  {line}" for words in EXAMPLES[name] for line in _lines(f"planner {words}")]
    return "\n".join(["\b", "Examples:" if len(EXAMPLES[name]) > 1 else "Example:", *lines])


def _lines(words: str, width: int = 72) -> list[str]:
    """Return a command as it is typed, long ones over several lines."""
    found = [""]
    for word in words.replace(" --", "\n--").split("\n"):
        if found[-1] and len(found[-1]) + len(word) + 3 > width:
            found[-1] += " \\"
            found.append(f"    {word}")
        else:
            found[-1] += f" {word}" if found[-1] else word
    return found
