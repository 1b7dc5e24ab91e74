"""What a model is worth: tasks by lm-eval, held-out loss, cost, and what the numbers allow."""
