"""The figures of the paper, one module each; `canvas` holds what they share.

Nothing is imported here, so that a change of one figure's code redraws that one alone.
"""
