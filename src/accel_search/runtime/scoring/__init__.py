"""Scoring and comparing images."""
