"""What is measured against what? A module each, all behind the same few verbs.

A peer lives in a process of its own (`process.py`), which the bench talks to (`client.py`).
"""
