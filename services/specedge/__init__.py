"""What the verifier and the edge agent share: the protocol, the draft trie, sampling, model execution."""

__version__ = "0.1.0"
