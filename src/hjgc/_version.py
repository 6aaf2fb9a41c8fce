"""Which version of hjgc is this? The one place that says so: pyproject.toml reads it from here."""

__version__ = "0.1.0"
