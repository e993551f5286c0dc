"""Pipelines in one file, in the layout that Stable Diffusion's own code writes."""
