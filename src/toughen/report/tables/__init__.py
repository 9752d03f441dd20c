"""Descriptions of tables, one function for each: whoever shows them adds nothing but form."""
