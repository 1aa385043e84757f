"""Your compute budget, spent well."""
