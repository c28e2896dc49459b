"""The torch program that executes one plan under torchrun.

Nothing here imports the rest of ``planner``: an export copies this directory whole, and it runs
where only torch is installed. ``rules``, ``plan_file`` and ``preflight`` need the standard library
alone, so a plan is refused before torch is imported.
"""
