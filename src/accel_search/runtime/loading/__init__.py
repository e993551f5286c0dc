"""Loading pipelines, their parts and prompts."""
