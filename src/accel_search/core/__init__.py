"""The vocabulary and its arithmetic: no files, no torch."""
