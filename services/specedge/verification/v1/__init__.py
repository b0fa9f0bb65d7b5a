"""Version 1 of the verification protocol."""
