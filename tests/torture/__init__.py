"""Kills, damage, full disks and hostile files, counted: ``python -m tests.torture``."""
