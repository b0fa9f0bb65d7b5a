"""`specedge top`: a live view of verifiers and edge agents, made of nothing but their `/metrics`."""
