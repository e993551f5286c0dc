"""Train the embedded demo pipeline and its scorer from nothing; see `train_demo.py`."""
