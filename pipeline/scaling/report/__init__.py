"""The report of a set of runs: words, figures, tables, and the page that holds them."""
