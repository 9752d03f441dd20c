"""What the verbs do, for Python and the command line alike: open what a text names, and run it into a folder.

Papers go by short names here too (Free, Limits, IAAT, Bilateral); docs/methods/README.md cites them.
"""
