"""Adaptation without prompts: caches and adapters beside the towers, low-rank updates of their weights."""
