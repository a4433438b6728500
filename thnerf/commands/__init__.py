"""The commands of the command line, by what they start from; each is a function whose docstring is its help."""
