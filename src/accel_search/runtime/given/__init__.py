"""A pipeline that its owner has in memory, and calls as they like."""
