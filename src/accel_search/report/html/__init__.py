"""Pages, plots and scripts."""
