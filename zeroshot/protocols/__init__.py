"""The protocols of few-shot adaptation: what is trained on which classes, and what is said of the result."""
