"""What speculation brings with the embedded pair: acceptance, latency, shared draft forwards and bytes on the wire."""
