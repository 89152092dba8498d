"""Training application: captioned images in, model directory out."""
