"""What runs a job of the workflow, whatever the job computes.

Nothing here knows models or their training. Importing :mod:`iskd.runtime.job` does not import
torch: the switches that torch reads on import have to be set before.
"""
