"""What the verbs do, for Python and the command line alike: open what a text names, and run it into a folder."""
