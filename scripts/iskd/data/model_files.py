"""Which files of a given model's folder are read: weights in safetensors, and what describes them.

Nothing that is unpickled or run.
"""

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Patterns of names."""
