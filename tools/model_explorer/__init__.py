"""A plan in Google's Model Explorer."""
