"""Fine-tuning: a pretrained encoder learns a task from few labels."""
