"""Regions for captioned images: phrases of their captions, found by an open-vocabulary detector."""
