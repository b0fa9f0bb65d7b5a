"""`specedge doctor`: checks a machine and a configuration before, or while, they serve."""
