"""Answers bound by a grammar: what is asked for, how it is compiled, and one session's place in it."""
