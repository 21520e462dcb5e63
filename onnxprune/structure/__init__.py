"""What can leave together, and why not: labels, rules, the trace."""
