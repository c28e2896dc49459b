"""The self-contained HTML page of ``planner report``."""
