"""Damage, scores and a budget give a plan."""
