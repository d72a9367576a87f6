"""Studies: every table and figure of the paper, from systems as data to a printed table, cached by DVC."""
