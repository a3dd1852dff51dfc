"""What pretraining is worth, by objective: `python -m benchmarks.learning`."""
