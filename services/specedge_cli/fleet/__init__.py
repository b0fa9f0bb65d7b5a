"""`specedge fleet`: verifiers and edge agents on many hosts, described in one file."""
