"""Many configurations, each in a subprocess, on one GPU, several, or a cluster of them."""
