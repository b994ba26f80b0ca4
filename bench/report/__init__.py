"""The report: statistics over seeds, tables, figures and the page, from stored results alone."""
