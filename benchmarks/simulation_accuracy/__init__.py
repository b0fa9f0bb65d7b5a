"""How near `specedge bench simulate` comes to the real services: the same requests through both."""
