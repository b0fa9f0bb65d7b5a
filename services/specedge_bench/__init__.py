"""The bench: three systems measured in one run, reports, step-time curves, and a simulator of the same code."""
