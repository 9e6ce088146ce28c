"""A package, since importing IPython 7 puts a folder on the path that holds another `tests`."""
