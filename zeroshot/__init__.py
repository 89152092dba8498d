"""Zero-shot application: classification and evaluation of a model directory."""
