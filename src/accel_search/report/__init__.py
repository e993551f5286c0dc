"""What a person reads: the lines of a running search, the summary at its end."""
