"""Attention, recognised by what it computes."""
