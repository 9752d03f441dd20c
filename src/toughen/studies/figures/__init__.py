"""The figure of a study: what its file asks to be drawn, which points these are, and what was measured there."""
