"""Adapters of a frozen dual encoder that are no prompts."""
