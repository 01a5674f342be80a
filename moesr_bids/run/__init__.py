"""Running participants: which images are processed, in which order, and messages about them."""
