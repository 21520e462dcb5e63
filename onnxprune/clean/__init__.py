"""What computes nothing leaves."""
