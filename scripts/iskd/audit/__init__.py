"""Verify a study's artifacts, trace them, make them again: what an auditor asks.

Nothing here runs or unpickles what it looks at. Statements are read strictly, files by their bytes,
and what can be worked out from numbers is worked out again by this checkout's code.
"""
