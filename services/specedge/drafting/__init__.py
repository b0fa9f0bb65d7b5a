"""Drafting with a draft model: token trees for all sessions of one process, on the edge or beside the target."""
