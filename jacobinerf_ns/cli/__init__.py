"""The `jacobinerf` command."""
