"""Fuzzing: for every op a hypothesis strategy of cases and a check of one case against an independent truth.

``python -m tests.fuzz`` runs many, tests/test_fuzz.py a few. See ``OPS`` in tests/fuzz/ops.py.
"""
