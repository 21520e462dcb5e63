"""Accuracy back, step by step."""
