"""What is printed: progress, summaries, verdicts."""
