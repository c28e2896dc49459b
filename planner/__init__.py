"""Plan how to split a large-model training job over a GPU cluster."""

__version__ = "0.1.0"
