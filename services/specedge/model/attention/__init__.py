"""Attention over KV slots, behind one interface: a reference for every device, and a Triton kernel for CUDA."""
