"""Carry out a plan, and the reference that proves it."""
