"""Studies: whole tables of the papers, or of one's own, as recipes, evaluations and published numbers side by side.

The papers are Free, Limits, IAAT and Bilateral; docs/methods/README.md, Papers, cites them.
"""
