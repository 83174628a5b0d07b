"""Programs that engines' own environments run: each explains the same pictures and writes tables to compare."""
