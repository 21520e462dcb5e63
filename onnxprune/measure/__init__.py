"""What samples say: statistics, accuracy, entropy, divergence."""
