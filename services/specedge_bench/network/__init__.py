"""The way between an edge and a verifier: named profiles, one shaping law, and two means to apply it to real bytes.

`proxy` shapes a TCP connection and needs no rights; `namespaces` shapes IP packets, so that the kernel's own TCP meets
the loss, the rate and the delay, and needs root or user namespaces.
"""
