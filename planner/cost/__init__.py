"""Seconds of one operation, one collective, one layer."""
