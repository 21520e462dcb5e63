"""A layer as a matrix product: its form, bias, moments, and ridge regression."""
