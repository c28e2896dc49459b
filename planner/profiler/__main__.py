"""``torchrun -m planner.profiler``."""

from planner.profiler.collect import main

if __name__ == "__main__":
    main()
