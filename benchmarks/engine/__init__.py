"""Step time of every engine against rows and prefix, beside what the hardware allows.

`python -m benchmarks.engine` measures the embedded pair, or random weights at a real model's shape; `attention` times
the attention backends on a GPU; `gpu-targets` holds a GPU to the bounds of a verify and of a draft step in one command.
"""
