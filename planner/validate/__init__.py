"""Replay of measured runs and error tables."""
