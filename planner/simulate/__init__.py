"""The step as tasks on streams, and its critical path."""
