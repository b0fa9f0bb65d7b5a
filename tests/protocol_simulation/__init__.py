"""Both sides of the session protocol in virtual time, over a network that fails as its seed says.

Edges and verifiers run their own code from `GenerationService` down to `EngineCore`. What is replaced: the clock, the
gRPC library (messages travel as the bytes it would send), the two models, and the two threads, which are tasks here.
"""
