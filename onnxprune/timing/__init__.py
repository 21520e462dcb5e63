"""What a machine says: latency in turns, node times, footprint."""
