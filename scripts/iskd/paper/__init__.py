"""From `metrics.csv` to the figures and tables of the paper."""
