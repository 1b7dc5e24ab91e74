"""Fine-tuning: the loop, the dual learning rate, the objectives."""
