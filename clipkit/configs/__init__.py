"""Small architectures in open_clip's JSON format, for tests, demos and first experiments."""
