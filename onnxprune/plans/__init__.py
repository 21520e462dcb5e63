"""What is asked for, and the decision in the middle."""
