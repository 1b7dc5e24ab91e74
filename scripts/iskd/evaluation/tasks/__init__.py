"""lm-eval tasks of our own: YAML files, and the functions they name (loaded by path)."""
