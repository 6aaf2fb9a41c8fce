"""The rewrite rules of the recogniser."""
