"""The commands of `sparse-dm`: each reads its options and calls the package."""
