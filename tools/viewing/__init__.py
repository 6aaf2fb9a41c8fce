"""A plan as one page that opens from a file, without a server or a network."""
