"""torchtitan 0.3 and later: recipes as Python functions, read by their syntax, never run; written.

A recipe makes ``Trainer.Config(section=SomeConfig(key=value), ...)``, or takes another one and
assigns to ``config.section.key``. What only running it could tell is asked for.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from planner.errors import SpecError
from planner.formats.torchtitan_toml import mesh_of, stage_names, torchtitan_problems_of
from planner.formats.unsupported import refuse
from planner.formats.work import Work
from planner.layout.layout import Recompute
from planner.layout.rules_torchtitan import FLAVORS, flavor_of

CONFIG = "config"  # --set config=NAME chooses among the recipes of a file
_POLICIES = {"FullAC": "full", "SelectiveAC": "selective", "MemoryBudgetAC": "memory_budget"}
# what the recipes of torchtitan 0.3.0 state, for modules that import one
_AC, _TRAINING, _SIZES = "activation_checkpoint.mode", "training.", "parallelism."
BASES: dict[str, dict[str, Any]] = {
    "llama3_8b": {f"{_TRAINING}local_batch_size": 1, f"{_TRAINING}seq_len": 8192},
    "llama3_70b": {f"{_TRAINING}local_batch_size": 8, f"{_TRAINING}seq_len": 8192,
                   f"{_SIZES}tensor_parallel_degree": 8, _AC: "full"},
    "llama3_405b": {f"{_TRAINING}local_batch_size": 2, f"{_TRAINING}seq_len": 8192,
                    f"{_SIZES}tensor_parallel_degree": 8, _AC: "full", "compile.enable": True,
                    "compile.enable_async_tensor_parallel": True, "model.converters": "float8"},
    "deepseek_v3_671b": {f"{_TRAINING}local_batch_size": 4, f"{_TRAINING}seq_len": 4096,
                         f"{_SIZES}pipeline_parallel_schedule": "Interleaved1F1B",
                         f"{_SIZES}expert_parallel_degree": 2, "compile.enable": True},
    "qwen3_30b_a3b": {f"{_TRAINING}local_batch_size": 2, f"{_TRAINING}seq_len": 4096, _AC: "full"},
}  # fmt: skip
_DEEPEST = 8  # recipes that change recipes


_MODULE = Template('''"""A plan for torchtitan 0.3: --module torchtitan_plan --config plan."""

$imports


def plan() -> Trainer.Config:
    """Return the recipe $base with the layout of the plan."""
    config = $base()
$lines
    return config
''')


@dataclass(slots=True)
class _File:
    """The functions of a module, the names that it imports, and what was met while reading."""

    functions: dict[str, ast.FunctionDef]
    imports: dict[str, str]
    remarks: list[str] = field(default_factory=list)


def read_recipe(
    path: Path, text: str, given: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of one recipe of a module, dots between their names, and remarks."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not valid Python: {error}; correct it there") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    imports = {alias.asname or alias.name: node.module or ""
               for node in tree.body if isinstance(node, ast.ImportFrom)
               for alias in node.names}  # fmt: skip
    file = _File(functions, imports)
    recipes = {name: found for name in functions
               if (found := _recipe(file, name, 0)) is not None}  # fmt: skip
    wanted = given.get(CONFIG) or (next(iter(recipes)) if len(recipes) == 1 else "")
    if wanted not in recipes:
        listed = ", ".join(recipes) or "none that was recognised"
        raise SpecError(f"{path}: holds recipes {listed}; name one with --set {CONFIG}=NAME")
    settings = {"model.name": _family(path, wanted, file)} | recipes[wanted]
    if settings.setdefault(_AC, "selective") == "selective":
        settings["activation_checkpoint.selective_ac_option"] = "op"  # SelectiveAC knows no other
    return settings, list(dict.fromkeys(file.remarks))


def _family(path: Path, recipe: str, file: _File) -> str:
    """Return the model's family: of the folder, of an import, of the recipe's name."""
    known = {family for family, _ in FLAVORS}
    places = [path.parent.name, *(part for module in file.imports.values()
                                  for part in module.split("."))]  # fmt: skip
    named = next((one for one in known if recipe.startswith(one)), "")
    return next((one for one in places if one in known), named) or path.parent.name


def _recipe(file: _File, name: str, depth: int) -> dict[str, Any] | None:
    """Return the settings of a function's result; None where it is no recipe."""
    if depth > _DEEPEST:
        return None
    variables: dict[str, ast.expr] = {}
    configs: dict[str, dict[str, Any]] = {}
    for node in file.functions[name].body:
        if isinstance(node, ast.Return) and node.value is not None:
            if isinstance(node.value, ast.Name):
                return configs.get(node.value.id)
            return _config(file, node.value, variables, depth)
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            _assign(file, node, variables, configs, depth)
        elif any(isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
                 for inner in ast.walk(node)):  # fmt: skip
            file.remarks.append(f"{name}, line {node.lineno}: what a branch or loop sets is not "
                                "read; give it with --set SECTION.KEY=VALUE")  # fmt: skip
    return None


def _assign(
    file: _File, node: ast.Assign, variables: dict[str, ast.expr],
    configs: dict[str, dict[str, Any]], depth: int,
) -> None:  # fmt: skip
    """Follow ``name = ...`` and ``config.section.key = ...``."""
    target = node.targets[0]
    if isinstance(target, ast.Name):
        variables[target.id] = node.value
        found = _config(file, node.value, variables, depth)
        if found is not None:
            configs[target.id] = found
        return
    root, _, path = ast.unparse(target).partition(".")
    if root in configs and path:
        settings = configs[root]
        if path == "model_spec":
            settings.pop("model.converters", None)
        for name in [name for name in settings if name.startswith(f"{path}.")]:
            del settings[name]  # a whole section is given anew
        settings |= _stated(path, node.value, variables)


def _config(
    file: _File, node: ast.expr, variables: Mapping[str, ast.expr], depth: int
) -> dict[str, Any] | None:
    """Return the settings that a call makes: ``Trainer.Config(...)``, or another recipe's."""
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    if name.endswith("Trainer.Config"):
        settings: dict[str, Any] = {}
        for one in node.keywords:
            settings |= _stated(one.arg or "", one.value, variables)
        return settings
    if name in file.functions:
        return _recipe(file, name, depth + 1)
    if name in BASES and file.imports.get(name, "").endswith("config_registry"):
        family = next(one for one, _ in FLAVORS if name.startswith(one))
        return {"model.name": family, "config": name} | BASES[name]
    if file.imports.get(name, "").endswith("config_registry"):
        file.remarks.append(f"{name} is imported from {file.imports[name]}; what it sets is not "
                            "read")  # fmt: skip
        return {"config": name}
    return None


def _stated(path: str, node: ast.expr, variables: Mapping[str, ast.expr]) -> dict[str, Any]:
    """Return the settings that a value of ``path`` states; ``${path}`` where only a run knows."""
    if isinstance(node, ast.Name) and node.id in variables:
        node = variables[node.id]
    if path == "model_spec":
        return _model(node)
    if path == "activation_checkpoint":
        return _policy(node, variables)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Config"):
        found: dict[str, Any] = {}
        for one in node.keywords:
            found |= _stated(f"{path}.{one.arg}", one.value, variables)
        return found
    try:
        return {path: ast.literal_eval(node)}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {path: f"${{{path}}}"}


def _model(node: ast.expr) -> dict[str, Any]:
    """Return the flavor that a registry is asked for, and what converts its layers."""
    if not isinstance(node, ast.Call):
        return {}
    found: dict[str, Any] = {}
    if node.args and isinstance(node.args[0], ast.Constant):
        found["model.flavor"] = str(node.args[0].value)
    names = [ast.unparse(one.value).lower() for one in node.keywords if one.arg == "converters"]
    if names:
        kinds = ("nvfp4", "mxfp8", "float8")
        found["model.converters"] = ",".join(kind for kind in kinds if kind in names[0])
    return found


def _policy(node: ast.expr, variables: Mapping[str, ast.expr]) -> dict[str, Any]:
    """Return the recompute that ``FullAC.Config()`` and its like stand for."""
    if isinstance(node, ast.Constant) and node.value is None:
        return {_AC: "none"}
    name = ast.unparse(node.func).split(".")[0] if isinstance(node, ast.Call) else ""
    if name not in _POLICIES:
        return {_AC: f"${{{_AC}}}"}
    return {_AC: _POLICIES[name]}


def recipe_name(work: Work) -> str:
    """Return the recipe of torchtitan 0.3 that a model is; empty where it has none."""
    family, flavor = flavor_of(work.model) or ("", "")
    name = f"{family}_{flavor.lower().replace('-', '_')}"
    return name if name in BASES else ""


def recipe_problems_of(work: Work) -> list[str]:
    """Return every reason why torchtitan 0.3 cannot run a job."""
    problems = torchtitan_problems_of(work)
    if flavor_of(work.model) is not None and not recipe_name(work):
        problems.append(f"model {work.model.name!r} has no recipe in torchtitan 0.3; recipes are "
                        f"{', '.join(BASES)}")  # fmt: skip
    if work.job.precision != "bf16":
        problems.append(f"precision {work.job.precision!r} is not written for torchtitan 0.3; use "
                        "bf16, or --target torchtitan")  # fmt: skip
    if work.layout.etp > 1:
        problems.append(f"etp={work.layout.etp}: torchtitan 0.3 has no such degree; use 1")
    return problems


def write_recipe(work: Work) -> str:
    """Return a module whose ``plan()`` is torchtitan's recipe with the layout of a job."""
    refuse(recipe_problems_of(work))
    base = recipe_name(work)
    family, flavor = flavor_of(work.model) or ("", "")
    policy = {Recompute.FULL: "FullAC", Recompute.SELECTIVE: "SelectiveAC"}.get(work.recompute)
    imports = [f"from torchtitan.models.{family}.config_registry import {base}",
               "from torchtitan.trainer import Trainer"]  # fmt: skip
    lines = [f"    config.{name} = {value!r}" for name, value in _fields(work).items()]
    lines.append(f"    config.activation_checkpoint = {f'{policy}.Config()' if policy else None}")
    if policy:
        imports.insert(0, f"from torchtitan.distributed.activation_checkpoint import {policy}")
    if "model.converters" in BASES[base]:  # 8-bit layers of the recipe
        imports.insert(-1, f"from torchtitan.models.{family} import model_registry")
        lines.insert(0, f"    config.model_spec = model_registry({flavor!r})")
    return _MODULE.substitute(imports="\n".join(imports), base=base, lines="\n".join(lines))


def _fields(work: Work) -> dict[str, Any]:
    """Return section.key -> value of everything that a layout decides, defaults too."""
    layout, job, (copies, shard, passes, reshard) = work.layout, work.job, mesh_of(work)
    found: dict[str, Any] = {
        "training.local_batch_size": layout.micro_batch * passes,
        "training.global_batch_size": job.global_batch,
        "training.seq_len": job.seq_len,
        "training.steps": 20,
        "training.enable_cpu_offload": layout.offload_weights,
        "training.disable_cuda_graphs": layout.pp > 1 or layout.ep > 1,
        "compile.enable": job.software.loss == "fused",
        "compile.enable_async_tensor_parallel": False,
        "parallelism.data_parallel_replicate_degree": copies,
        "parallelism.data_parallel_shard_degree": shard,
        "parallelism.fsdp_reshard_after_forward": reshard,
        "parallelism.tensor_parallel_degree": layout.tp,
        "parallelism.context_parallel_degree": layout.cp,
        "parallelism.pipeline_parallel_degree": layout.pp,
        "parallelism.expert_parallel_degree": layout.ep,
    }
    if layout.pp > 1:
        schedule = "1F1B" if layout.vpp == 1 else "Interleaved1F1B"
        found |= {
            "parallelism.pipeline_parallel_schedule": schedule,
            "parallelism.pipeline_parallel_microbatch_size": layout.micro_batch,
            "parallelism.module_fqns_per_model_part": stage_names(work, "lm_head"),
        }
    return found
