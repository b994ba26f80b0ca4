"""Two measurements compared, two revisions measured in turn, and what many revisions measured."""
