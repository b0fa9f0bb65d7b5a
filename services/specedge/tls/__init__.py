"""TLS between edge and verifier and at the edge's HTTP port: files, their changes, and why a handshake fails."""
