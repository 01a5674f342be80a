"""Running participants: what is done of a data set, in which order, and what is told of it."""
