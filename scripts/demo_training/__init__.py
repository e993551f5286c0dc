"""Train the embedded demo pipeline and its scorer from nothing; see `scripts/train_demo.py`."""
