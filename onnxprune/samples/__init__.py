"""Labelled samples: sources, split by use, made-up inputs."""
