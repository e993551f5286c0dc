"""Generating, timing and measuring candidates."""
