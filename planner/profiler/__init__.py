"""Measurements of links and kernels, under torchrun."""
