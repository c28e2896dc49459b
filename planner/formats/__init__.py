"""Foreign formats, each file with its writer (and reader) side by side."""
