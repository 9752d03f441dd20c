"""Where images come from: a file for each layout, the registry of names, and which layout lies at a path."""
