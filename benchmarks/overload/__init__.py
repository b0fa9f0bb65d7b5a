"""What users get when ten times as many ask as can be served: `python -m benchmarks.overload`."""
