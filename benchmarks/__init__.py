"""Programs that print the tables of the README and of the pages in docs/."""
