"""What the user states or the profiler measured: model, cluster, job, profile."""
