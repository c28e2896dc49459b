"""Layers and operations of a model, in numbers."""
