"""What is measured next, and when to stop."""
