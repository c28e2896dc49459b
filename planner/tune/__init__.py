"""Run plans for a few steps, compare with their estimates, keep the fastest."""
