"""Faults injected into copies of a finished study, and what an auditor is answered."""
