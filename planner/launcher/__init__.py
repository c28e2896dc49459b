"""The torch program that runs a plan; imports torch only."""
