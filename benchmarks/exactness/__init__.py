"""Speculation against plain decoding, token for token: every drafter, batch, preemption and broken stream.

`python -m benchmarks.exactness` runs the grid. Each cell starts a verifier and an edge in one process, joined by real
gRPC over loopback, lets them answer every prompt, and holds the answers to those of plain decoding of one session.
"""
