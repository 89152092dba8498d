"""Heads: what is learned beside a frozen dual encoder, and how both classify together."""
