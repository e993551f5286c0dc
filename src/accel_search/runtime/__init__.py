"""Everything that needs torch: pipelines, prompts, generation, timing, scoring, the evaluator.

Importing this package imports no torch; its modules do.
"""
