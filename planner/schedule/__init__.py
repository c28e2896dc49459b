"""The order of passes on each pipeline rank, as data without times."""
