"""Studies: whole tables of the papers, or of one's own, as recipes, evaluations and published numbers side by side."""
