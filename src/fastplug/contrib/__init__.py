"""Uses of fastplug's seams that are of general use: runners. Nothing in the rest of the package imports this."""
