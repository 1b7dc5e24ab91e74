"""The model classes, one file per family.

What lies here is copied into every saved folder, so that it loads without this package: these
files import torch, transformers and each other (relatively), and nothing else.
"""
