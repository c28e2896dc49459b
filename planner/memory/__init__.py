"""Bytes on each rank, by component."""
