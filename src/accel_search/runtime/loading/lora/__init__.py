"""LoRAs: find them, check them against the model they are for, and load them into a pipeline."""
