"""One way to split the job, the rank grids, the rules, and the space of all layouts."""
